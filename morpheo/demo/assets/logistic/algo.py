"""Logistic regression, learned online: each training continues from the last model, with AdaGrad steps."""

import argparse
import json
import os

import numpy as np

TARGET = "malignant"
EPOCHS = 30
STEP = 0.1
DECAY = 1e-3


def read(path):
    """Return the measurements, and the diagnoses if the file has them."""
    with open(path) as file:
        names = file.readline().strip().split(",")
        table = np.loadtxt(file, delimiter=",", ndmin=2)
    features = table[:, [index for index, name in enumerate(names) if name != TARGET]]
    return features, table[:, names.index(TARGET)] if TARGET in names else None


def files(folder):
    """Return the names of the data files in a folder."""
    return sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))


def new_model(width):
    """Return an untrained model: running moments of each measurement, weights, and squared gradients."""
    return {
        "count": 0,
        "mean": np.zeros(width),
        "square": np.zeros(width),
        "weights": np.zeros(width + 1),
        "gradients": np.full(width + 1, 1e-8),
    }


def load(path):
    """Return the model in a file."""
    with open(path) as file:
        return {key: np.array(value) if isinstance(value, list) else value for key, value in json.load(file).items()}


def save(model, path):
    """Write a model to a file."""
    with open(path, "w") as file:
        json.dump(
            {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in model.items()}, file
        )


def prepared(model, features):
    """Return standardised measurements with a constant column."""
    spread = np.sqrt(np.maximum(model["square"] - model["mean"] ** 2, 1e-12))
    return np.hstack([(features - model["mean"]) / spread, np.ones((len(features), 1))])


def probability(model, inputs):
    """Return the probability that a tumour is malignant."""
    return 1 / (1 + np.exp(-np.clip(inputs @ model["weights"], -30, 30)))


def learn(model, features, truth):
    """Improve a model with one file."""
    total = model["count"] + len(features)
    model["mean"] = (model["mean"] * model["count"] + features.sum(axis=0)) / total
    model["square"] = (model["square"] * model["count"] + (features**2).sum(axis=0)) / total
    model["count"] = total
    inputs = prepared(model, features)
    order = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for row in order.permutation(len(inputs)):
            error = probability(model, inputs[row : row + 1])[0] - truth[row]
            gradient = error * inputs[row] + DECAY * model["weights"]
            model["gradients"] += gradient**2
            model["weights"] -= STEP * gradient / np.sqrt(model["gradients"])


def predict(model, folder):
    """Write a prediction for each file of a folder."""
    os.makedirs(os.path.join(folder, "pred"), exist_ok=True)
    for name in files(folder):
        features, _ = read(os.path.join(folder, name))
        np.savetxt(os.path.join(folder, "pred", name), probability(model, prepared(model, features)), "%.10g")


parser = argparse.ArgumentParser()
parser.add_argument("-V", dest="volume", required=True)
parser.add_argument("-T", dest="task", choices=["train", "predict"], required=True)
args = parser.parse_args()
model_path = os.path.join(args.volume, "model", "model_trained.json")
train, test = os.path.join(args.volume, "train"), os.path.join(args.volume, "test")
if args.task == "train":
    model = load(model_path) if os.path.exists(model_path) else None
    for name in files(train):
        features, truth = read(os.path.join(train, name))
        model = model or new_model(features.shape[1])
        learn(model, features, truth)
        print(f"{name}: learned from {len(truth)} patients, {model['count']} in all")
    save(model, model_path)
    predict(model, train)
else:
    model = load(model_path)
predict(model, test)

"""Gaussian naive Bayes, learned online: counts, sums and squares of each measurement, for each diagnosis."""

import argparse
import json
import os

import numpy as np

TARGET = "malignant"


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


def learn(model, features, truth):
    """Add one file to the sums."""
    for label in (0, 1):
        mine = features[truth == label]
        sums = model.setdefault(
            str(label), {"count": 0, "sum": [0.0] * features.shape[1], "square": [0.0] * features.shape[1]}
        )
        sums["count"] += len(mine)
        sums["sum"] = (np.array(sums["sum"]) + mine.sum(axis=0)).tolist()
        sums["square"] = (np.array(sums["square"]) + (mine**2).sum(axis=0)).tolist()


def log_likelihood(sums, features):
    """Return how likely measurements are for one diagnosis."""
    mean = np.array(sums["sum"]) / sums["count"]
    variance = np.maximum(np.array(sums["square"]) / sums["count"] - mean**2, 1e-12)
    return (-0.5 * (np.log(variance) + (features - mean) ** 2 / variance)).sum(axis=1) + np.log(sums["count"])


def predict(model, folder):
    """Write a prediction for each file of a folder."""
    os.makedirs(os.path.join(folder, "pred"), exist_ok=True)
    for name in files(folder):
        features, _ = read(os.path.join(folder, name))
        odds = log_likelihood(model["1"], features) - log_likelihood(model["0"], features)
        np.savetxt(os.path.join(folder, "pred", name), odds, "%.10g")


parser = argparse.ArgumentParser()
parser.add_argument("-V", dest="volume", required=True)
parser.add_argument("-T", dest="task", choices=["train", "predict"], required=True)
args = parser.parse_args()
model_path = os.path.join(args.volume, "model", "model_trained.json")
train, test = os.path.join(args.volume, "train"), os.path.join(args.volume, "test")
model = {}
if args.task == "predict" or os.path.exists(model_path):
    with open(model_path) as file:
        model = json.load(file)
if args.task == "train":
    for name in files(train):
        features, truth = read(os.path.join(train, name))
        learn(model, features, truth)
        print(f"{name}: {sum(sums['count'] for sums in model.values())} patients in all")
    with open(model_path, "w") as file:
        json.dump(model, file)
    predict(model, train)
predict(model, test)

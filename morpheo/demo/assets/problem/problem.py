"""The problem: is a breast tumour malignant? Hides the diagnosis, and scores predictions by ROC AUC."""

import argparse
import json
import os

import numpy as np

TARGET = "malignant"


def read(path):
    """Return the column names and the table of a data file (comma-separated, one patient a line)."""
    with open(path) as file:
        names = file.readline().strip().split(",")
        return names, np.loadtxt(file, delimiter=",", ndmin=2)


def roc_auc(truth, scores):
    """Return the chance that a malignant tumour scores higher than a benign one (Mann-Whitney U; ties count half)."""
    order = np.argsort(scores, kind="mergesort")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    for value in np.unique(scores):
        ranks[scores == value] = ranks[scores == value].mean()
    positives = int(truth.sum())
    negatives = len(truth) - positives
    return float((ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def files(folder):
    """Return the names of the data files in a folder."""
    return sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))


def detarget(hidden, submission):
    """Copy each test file without its diagnosis."""
    for name in files(os.path.join(hidden, "test")):
        columns, table = read(os.path.join(hidden, "test", name))
        kept = [index for index, column in enumerate(columns) if column != TARGET]
        header = ",".join(columns[index] for index in kept)
        np.savetxt(os.path.join(submission, "test", name), table[:, kept], "%.10g", ",", header=header, comments="")


def score(truth_folder, prediction_folder):
    """Return the AUC of each file, and all truths and predictions."""
    per_file, truths, predictions = {}, [], []
    for name in files(truth_folder):
        columns, table = read(os.path.join(truth_folder, name))
        truth = table[:, columns.index(TARGET)]
        predicted = np.loadtxt(os.path.join(prediction_folder, name), ndmin=1)
        if predicted.shape != truth.shape or not np.isfinite(predicted).all():
            raise SystemExit(f"{name}: {len(truth)} finite predictions expected, one a line")
        per_file[name] = roc_auc(truth, predicted)
        truths.append(truth)
        predictions.append(predicted)
    return per_file, np.concatenate(truths), np.concatenate(predictions)


def perf(hidden, submission):
    """Score the predictions and write performance.json."""
    train, _, _ = score(os.path.join(submission, "train"), os.path.join(submission, "train", "pred"))
    test, truth, predicted = score(os.path.join(hidden, "test"), os.path.join(submission, "test", "pred"))
    result = {"perf": roc_auc(truth, predicted), "train_perf": train, "test_perf": test}
    with open(os.path.join(hidden, "perf", "performance.json"), "w") as file:
        json.dump(result, file)
    print("AUC on the hidden test set:", result["perf"])


parser = argparse.ArgumentParser()
parser.add_argument("-T", dest="task", choices=["detarget", "perf"], required=True)
parser.add_argument("-i", dest="hidden", required=True)
parser.add_argument("-s", dest="submission", required=True)
args = parser.parse_args()
{"detarget": detarget, "perf": perf}[args.task](args.hidden, args.submission)

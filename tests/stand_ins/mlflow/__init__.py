"""A stand-in for MLflow's package, with what the trainer uses of it and with its limits."""

import re
from types import SimpleNamespace

from calls import called

_NAME = re.compile(r"[\w\-. /]{1,250}", re.ASCII)


class MlflowClient:
    def get_experiment_by_name(self, name):
        called("mlflow", "get_experiment_by_name", name=name)

    def create_experiment(self, name):
        called("mlflow", "create_experiment", name=name)
        return "7"

    def create_run(self, experiment_id, run_name):
        called("mlflow", "create_run", experiment_id=experiment_id, run_name=run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="run1"))

    def get_run(self, run_id):
        called("mlflow", "get_run", run_id=run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        called("mlflow", "update_run", run_id=run_id, status=status)

    def log_batch(self, run_id, metrics=(), params=()):
        assert (
            len(params) <= 100 and len(metrics) <= 1000 and all(len(param.value) <= 500 for param in params)
        )
        assert all(_NAME.fullmatch(metric.key) and isinstance(metric.step, int) for metric in metrics)
        called(
            "mlflow",
            "log",
            run_id=run_id,
            metrics=[[metric.key, metric.value, metric.step] for metric in metrics],
            params={param.key: param.value for param in params},
        )

    def log_text(self, run_id, text, artifact_file):
        called("mlflow", "log_text", run_id=run_id, file=artifact_file)

    def log_dict(self, run_id, dictionary, artifact_file):
        called("mlflow", "log_dict", run_id=run_id, file=artifact_file, content=dictionary)

    def set_terminated(self, run_id, status):
        called("mlflow", "set_terminated", run_id=run_id, status=status)

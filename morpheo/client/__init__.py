"""
Python clients of Morpheo's services.

    >>> storage = StorageClient("http://127.0.0.1:8082", user="u", password="p")
    >>> algo = storage.upload(ArtifactKind.ALGO, Path("algo.tar.gz"), name="my algo")
    >>> job = ComputeClient("http://127.0.0.1:8081", user="u", password="p").wait(job_id)
    >>> orchestrator = OrchestratorClient("http://127.0.0.1:8083", user="u", password="p")
    >>> submission, jobs = orchestrator.add_algo(algo.id, name=algo.name, problem=problem_id)
"""

from morpheo.client.compute import ComputeClient
from morpheo.client.documents import Learnuplet, Preduplet
from morpheo.client.leaderboard import Leaderboard, LearningCurve
from morpheo.client.orchestrator import OrchestratorClient
from morpheo.client.storage import StorageClient, StoredArtifact
from morpheo.standings import Entry

__all__ = [
    "ComputeClient",
    "Entry",
    "Leaderboard",
    "LearningCurve",
    "Learnuplet",
    "OrchestratorClient",
    "Preduplet",
    "StorageClient",
    "StoredArtifact",
]

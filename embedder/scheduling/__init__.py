"""Scheduling: the way from waiting texts to results.

scheduler  the plan as pure data: queues, turns, budget, window, yield points
pool       the threads that follow it
jobs       the two kinds of jobs, and the stream of results
runner     one batch through an engine
gathering  short texts of many tasks, tokenized together
delivery   results on their way to event loops
"""

from embedder.scheduling.jobs import ResultStream
from embedder.scheduling.pool import BatchReport, ModelPool, Observer
from embedder.scheduling.runner import Result
from embedder.scheduling.scheduler import Priority

__all__ = ["BatchReport", "ModelPool", "Observer", "Priority", "Result", "ResultStream"]

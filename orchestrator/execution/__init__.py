"""Run jobs: the queue, the scheduler, executors on Ray and in this process, retries and the budget."""

"""The evaluation pool: every checkpoint judged on every task, once, while training goes on."""

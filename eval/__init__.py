"""The evaluation: suites x modes x models x settings, run once, measured the same way, compared on the same
tasks.

`rlm-eval @ configs/eval/offline.toml` is the whole interface; `eval.runner.run_matrix` is the same from
Python. The room reads from top to bottom of one run:

    config.py     what a TOML file may say
    matrix.py     the cells that it means: one suite, one setting, one mode, one model
    endpoints.py  where each model answers: a URL, a checkpoint on its own vLLM, or `scripted.py`
    folder.py     the results folder; resume
    runner.py     episodes, in-process through verifiers
    rows.py       one flat row per episode, and the outcome category that it falls in
    stats.py      intervals and paired differences, as pure functions
    summary.py    rows -> summary.json
    report.py     summary -> report.md (markdown.py writes its numbers); plots.py draws, published.py
                  compares, wandb_log.py uploads

Invariant: a number in the report is a function of `episodes.jsonl` alone, so `--report-only` rebuilds it.
"""

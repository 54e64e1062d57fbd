"""Fine-tuning of any model the engine loads, from recordings: `python -m training.finetune CONFIG.toml`.

Recordings with word times (`recordings`) become token columns with loss weights (`lessons`), through
the model's own codec (`codes`). The model is the engine's, run over whole sequences (`model`), trained
whole or by adapters (`lora`, `trainer`), judged by running freely (`free_running`) and written in the
published layout (`checkpoints`). `example_data` speaks a small data set to try it on.
"""

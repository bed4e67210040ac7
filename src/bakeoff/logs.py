"""What other libraries may say on the terminal."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Keep errors; drop the loading reports and advice that would drown one line that matters."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|accelerate)\b")

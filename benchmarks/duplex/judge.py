"""How well an interruption was answered, 0 to 5, by a language model behind an OpenAI-compatible endpoint.

The published benchmark asks GPT-4 for the same scale (``eval_user_interruption.py``); the wording here is our
own, so scores compare among runs of this program, and with published ones only roughly.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import httpx

from personaplex.errors import DownloadError

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 3
_RATING = re.compile(r"rating\D{0,5}([0-5])\b", re.IGNORECASE)
_TASK = (
    "A person talked with a voice agent. The person said something, the agent began to answer, and the person broke "
    "in. Judge only how well what the agent said afterwards answers what the person broke in with: 0 nothing to do "
    "with it, 1 hardly, 2 a little, 3 related, 4 answers it well, 5 answers it perfectly. "
    "Explain in one sentence, then end with a line 'Rating: N'."
)


@dataclass(frozen=True)
class Judge:
    """``url``: of the API, ending in ``/v1`` as a rule; the key is taken from ``OPENAI_API_KEY`` if it is set."""

    url: str
    model: str
    timeout_sec: float = 60.0

    def rate(self, context: str, interruption: str, answer: str) -> int | None:
        """0 … 5; None when no rating came in three attempts. Raises DownloadError when the server does not answer."""
        asked = f"First the person said: {context}\nThen broke in with: {interruption}\nThe agent then said: {answer}"
        for seed in range(ATTEMPTS):
            found = _RATING.findall(self._ask(asked, seed))
            if found:
                return int(found[-1])
        return None

    def _ask(self, text: str, seed: int) -> str:
        key = os.environ.get(KEY_VARIABLE)
        messages = [{"role": "system", "content": _TASK}, {"role": "user", "content": text}]
        try:
            reply = httpx.post(
                f"{self.url.rstrip('/')}/chat/completions",
                json={"model": self.model, "messages": messages, "seed": seed, "temperature": 0},
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=self.timeout_sec,
            )
            reply.raise_for_status()
            return reply.json()["choices"][0]["message"]["content"] or ""
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
            raise DownloadError(
                f"the judge at {self.url} gave no answer ({error!r}); check --judge-url, --judge-model and "
                f"{KEY_VARIABLE}, or leave the judge out"
            ) from error

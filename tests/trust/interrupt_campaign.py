"""Real signals at random moments of a use of a model, in a process without shape checks, as a user's.

python -m tests.trust.interrupt_campaign MODEL_FOLDER --rounds 5000 [--seed 0]

Prints the outcome for each kind of hooks as JSON. (The wrappers that check shapes in tests come between a
block's end and its `__exit__`: an interrupt within them skips the exit, and their stack keeps the arguments.)
"""

import argparse
import gc
import json
import random
import signal
import sys
import time
from typing import Any

import ot_lens as otl
from ot_lens.models import backend, evaluating
from tests import checkpoints
from tests.trust.leak_checks import EDITS, PROMPTS, evaluated, leaked, light_look, only_look, state


def with_users_hook(folder: str, hooks: str) -> Any:
    """A model in training mode, with a hook of the user."""
    model = otl.load_model(folder, hooks=hooks)
    backend(model).hook_point(1, "resid_pre").add_hook(only_look)
    model.train()
    evaluated(model, checkpoints.one_batch(model, PROMPTS))
    return model


def campaign(model: Any, rounds: int, seed: int) -> dict[str, Any]:
    """Interrupt a use of the model at random moments, and check what is left."""
    generator, batch, served = random.Random(seed), checkpoints.one_batch(model, PROMPTS), backend(model)
    whole, look = state(model, batch), light_look(model)
    before = look()

    def use() -> None:
        with evaluating(model), otl.intervene(model, EDITS, "last"):
            if generator.random() < 0.2:
                served.logits(batch.tokens[:, -1:], batch.mask[:, -1:], keep=1)

    started = time.perf_counter()
    for _ in range(50):
        use()
    span = (time.perf_counter() - started) / 50
    signals, lost, dropped = 0, [], []
    sys.unraisablehook = lambda found: dropped.append(str(found.object))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # nothing may be repaired by chance
    for at in range(rounds):
        try:
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, span))
            use()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            signals += 1
        if found := leaked(before, look()):
            lost.append({"round": at, "left": found})
            before = look()
    gc.enable()
    return {
        "rounds": rounds,
        "signals": signals,
        "lost": lost,
        "dropped_by_finalizers": len(dropped),
        "differs_at_the_end": [] if lost else leaked(whole, state(model, batch)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for hooks in ("residual", "full"):
        model = with_users_hook(arguments.folder, hooks)
        print(json.dumps(campaign(model, arguments.rounds, arguments.seed)))


if __name__ == "__main__":
    main()

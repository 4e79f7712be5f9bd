"""Tells what became of each step of a plan, a line for each thing, beside what Ansible says.

A task of a step is named `NUMBER: what it does`; one that looks why a step failed, `NUMBER? what`.
Each line begins with the word in SAFETYTWIN_WORD, which nobody else knows.
"""
import json
import os
import re
import sys

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: safetytwin
type: aggregate
short_description: tells what became of each step of a plan
description: Read by SafetyTwin's server, which asks for it.
"""

NAME = re.compile(r"([0-9]+)([:?]) ")
# A longer line would be cut.
TEXT = 700


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "safetytwin"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.word = os.environ.get("SAFETYTWIN_WORD")
        self.step = None
        if not self.word:
            self.disabled = True

    def tell(self, step, what, text=""):
        line = json.dumps({"step": step, "is": what, "text": text[-TEXT:]})
        try:
            sys.stdout.write(f"{self.word} {line}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever began this is gone, and another may begin anew.
            os._exit(1)

    def v2_playbook_on_task_start(self, task, is_conditional):
        named = NAME.match(task.get_name())
        step = int(named[1]) if named else None
        if self.step is not None and step != self.step:
            self.tell(self.step, "over")
        self.step = step
        if named and named[2] == ":":
            self.tell(step, "began")

    def v2_runner_on_ok(self, result):
        named, outcome = about(result)
        if named and named[2] == ":":
            self.tell(int(named[1]), "changed" if outcome.get("changed") else "ok")
        elif named:
            for line in outcome.get("stdout_lines", []):
                self.tell(int(named[1]), "said", line)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        named, outcome = about(result)
        if named:
            self.tell(int(named[1]), "failed", why(outcome))

    def v2_runner_on_unreachable(self, result):
        self.v2_runner_on_failed(result)


def about(result):
    """The step of a task, and what came of it; newer versions of Ansible have plain names."""
    task = getattr(result, "task", None) or result._task
    outcome = getattr(result, "result", None) or result._result
    return NAME.match(task.get_name()), outcome


def why(outcome):
    """What a module says, and the last line of its program's complaint."""
    said = str(outcome.get("msg", "")).strip()
    lines = str(outcome.get("stderr") or outcome.get("stdout") or "").strip().splitlines()
    last = [line for line in lines[-1:] if line not in said]
    return ": ".join(text for text in [said, *last] if text) or "it does not say why"

"""The monitor on a terminal, with prompt_toolkit: history, completion, colours of a real line editor.

It runs in a thread of its own, because prompt_toolkit brings asyncio, which the machine must not wait for. A command
line is posted to the main loop; the thread waits for its output.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from qemupy.monitor.hmp import PROMPT, Hmp
from qemupy.vm import Vm


class TerminalMonitor:
    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._hmp = Hmp(vm)
        self._lines: list[str] = []
        self._hmp.history = lambda: self._lines
        self._ended = threading.Event()
        self._saved: list[Any] | None = None
        self._waiting: Callable[[], None] | None = None
        self.held = False  # what is typed is for a machine that is still being loaded

    def start(self) -> None:
        self._vm.chardevs.add_monitor(self)
        threading.Thread(target=self._main, name="monitor", daemon=True).start()
        self._vm.on_close(self._restore)

    def _restore(self) -> None:
        """The prompt may be waiting in raw mode on another thread: give the terminal back."""
        self._ended.set()
        if self._saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
            sys.stdout.write("\n")

    def _main(self) -> None:
        import termios

        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import CompleteEvent, Completer, Completion
        from prompt_toolkit.document import Document
        from prompt_toolkit.patch_stdout import patch_stdout

        hmp = self._hmp
        self._saved = termios.tcgetattr(0)

        class Words(Completer):
            def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
                head = document.text_before_cursor
                for line in hmp.complete(head):
                    yield Completion(line, start_position=-len(head), display=line.rpartition(" ")[2])

        session: PromptSession[str] = PromptSession(completer=Words(), complete_while_typing=False)
        sys.stdout.write(hmp.banner())
        with patch_stdout(raw=True):
            while not self._ended.is_set():
                try:
                    line = session.prompt(PROMPT)
                except KeyboardInterrupt:
                    self._vm.loop.post(lambda: self._vm.request_shutdown("host-signal"))
                    return
                except EOFError:
                    return
                self._lines.append(line)
                sys.stdout.write(self._run(line))

    def _take(self, run: Callable[[], None]) -> None:
        """In the main loop. There is one line at most: the next is read when this one has its answer."""
        if self.held:
            self._waiting = run
        else:
            run()

    def accept_input(self) -> None:
        run, self._waiting = self._waiting, None
        if run is not None:
            run()

    def _run(self, line: str) -> str:
        done = threading.Event()
        answer: list[str] = []

        def answered(output: str) -> None:
            answer.append(output)
            done.set()

        self._vm.loop.post(lambda: self._take(lambda: self._hmp.run(line, answered)))
        while not done.wait(0.2):
            if self._ended.is_set():
                return ""
        return answer[0]

"""The REPL worker: one standard-library file (Python >= 3.8) that runs model code in a process of its own.

The idea: two processes with different jobs. The *supervisor* holds the pipes to the host, owns the clock
hand (interrupts), the captured output and the process tree, and never runs model code. The *child*, forked
from it, runs model code and speaks to the supervisor over a socket. So model code cannot reach the host's
pipes, cannot outlive its supervisor, and its output is counted and cut outside of it, whether it came from
``print``, ``os.write(1, ...)`` or a subprocess. Started with ``isolation = "namespaces"`` this file first
builds its own namespaces and file-system view; under bubblewrap it finds them made.

Invariant: nothing here is trusted by the host. Every limit whose breach could hurt anyone but this very
episode is enforced by the kernel or on the host (see docs/security.md).

Frames: 4-byte big-endian payload length, 1 kind byte, payload. Kinds, host to worker: ``S`` start, ``C``
context bytes, ``F`` file bytes, ``X`` execute, ``A`` answer to a request; for the supervisor, ``I`` interrupt
and ``K`` end. Worker to host: ``H`` hello, ``Q`` request, ``O`` output, ``R`` result, ``D`` died, ``E`` start
failed. From child to supervisor alone: ``B`` the code has begun (empty). The others are JSON but for ``C``
and ``F``, which are raw.

More than 400 lines because it is shipped into containers as a single file.
"""

import _ast
import _sitebuiltins
import builtins
import codecs
import errno
import json
import linecache
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback  # now, and not when model code has used up the memory or the descriptors
import types

HEADER = struct.Struct(">IB")
CHUNK = 1 << 16
BUFFERED = 4 << 20  # bytes held per direction before the other side is made to wait
MAX_NAMES = 200
SOURCES_KEPT = 100
MAX_FILES = 65536  # in the scratch directory
ONLY_AST = int(0x400)  # ast.PyCF_ONLY_AST


def pack(kind, payload):
    return HEADER.pack(len(payload), ord(kind)) + payload


def pack_json(kind, value):
    # ASCII JSON carries lone surrogates as escapes, so no text that Python can hold is unsendable.
    return pack(kind, json.dumps(value, allow_nan=False).encode("ascii"))


# --------------------------------------------------------------------------------------------------------
# The child: namespace, execution, calls to the host
# --------------------------------------------------------------------------------------------------------


class SubCallError(RuntimeError):
    """At least one sub-LLM call of a batch failed. ``results`` holds every reply that did arrive (str), and a
    SubCallFailure in place of each that did not, in the order of the prompts."""

    def __init__(self, message, results=()):
        super().__init__(message)
        self.results = list(results)


class SubCallLimitError(SubCallError):
    """A budget refused this call or part of it. ``results`` holds what was done before."""


class SubCallFailure:
    """Stands in a list of replies for a sub-call that failed. Not a string; false in a condition."""

    def __init__(self, type, message):
        self.type = type
        self.message = message

    def __bool__(self):
        return False

    def __repr__(self):
        return "<SubCallFailure {}: {}>".format(self.type, self.message)


class ToolError(RuntimeError):
    """A tool or host function failed."""


for _class in (SubCallError, SubCallLimitError, SubCallFailure, ToolError):
    _class.__module__ = "builtins"  # so that tracebacks give the bare name, which is what code can catch


class Channel:
    """Frames between the child and its supervisor; used by any number of threads at once.

    There is no reader thread (it would make ``os.fork`` in model code unsafe): of the threads that wait,
    one reads and hands out what the others wait for. The main thread never loses bytes to an interrupt:
    while it is in here KeyboardInterrupt is held back until the frame boundary.
    """

    def __init__(self, sock, max_frame):
        self.sock = sock
        self.max_frame = max_frame
        self.pid = os.getpid()
        self.main = threading.get_ident()
        self.cond = threading.Condition()
        self.write_lock = threading.Lock()
        self.reading = False
        self.wanted = set()  # request ids somebody waits for
        self.replies = {}
        self.orders = []  # frames for the main loop
        self.buffer = bytearray()
        self.next_id = 0
        self.held = 0  # > 0: the main thread is inside, interrupts wait
        self.interrupted = False
        self.wake_r, self.wake_w = os.pipe()
        os.set_blocking(self.wake_r, False)
        os.set_blocking(self.wake_w, False)

    def check_interrupt(self):
        if self.interrupted and threading.get_ident() == self.main and self.held == 1:
            self.interrupted = False
            raise KeyboardInterrupt

    def read_some(self, is_main):
        """Block until bytes, or for the main thread an interrupt, may have arrived."""
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        if is_main:
            poller.register(self.wake_r, select.POLLIN)
        ready = dict(poller.poll())
        if self.wake_r in ready:
            try:
                os.read(self.wake_r, 4096)
            except OSError:
                pass
        if self.sock.fileno() in ready:
            data = self.sock.recv(CHUNK)
            if not data:
                os._exit(0)  # the supervisor is gone
            self.buffer += data

    def take_frame(self):
        """One whole frame off the buffer as (kind, payload), or None."""
        if len(self.buffer) < HEADER.size:
            return None
        size, kind = HEADER.unpack_from(self.buffer)
        end = HEADER.size + size
        if len(self.buffer) < end:
            return None
        payload = bytes(memoryview(self.buffer)[HEADER.size : end])
        del self.buffer[:end]
        return chr(kind), payload

    def wait(self, request):
        """Block until the reply to ``request`` (an id), or the next order (None), is here."""
        is_main = threading.get_ident() == self.main
        while True:
            with self.cond:
                if request is None and self.orders:
                    return self.orders.pop(0)
                if request is not None and request in self.replies:
                    return self.replies.pop(request)
                if is_main and request is not None:
                    self.check_interrupt()
                lead = not self.reading
                if lead:
                    self.reading = True
                else:
                    # The main thread looks up now and then: an interrupt does not wake a lock.
                    self.cond.wait(0.1 if is_main else None)
                    continue
            try:
                frame = self.take_frame()
                while frame is None:
                    self.read_some(is_main)
                    if is_main and request is not None and self.interrupted:
                        break
                    frame = self.take_frame()
            finally:
                with self.cond:
                    self.reading = False
                    self.cond.notify_all()
            if frame is None:
                continue
            with self.cond:
                kind, payload = frame
                if kind == "A":
                    reply = json.loads(payload)
                    if reply["id"] in self.wanted:  # else its caller was interrupted
                        self.replies[reply["id"]] = reply
                else:
                    self.orders.append(frame)
                self.cond.notify_all()

    def send(self, kind, payload):
        with self.write_lock:
            self.sock.sendall(pack(kind, payload))

    def order(self):
        """The next order of the host. Main thread only."""
        self.held += 1
        try:
            return self.wait(None)
        finally:
            self.held -= 1

    def request(self, name, payload):
        """Ask the host and block for its reply (a dict)."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                "calls to the host work only in the REPL's own process, not in a child process; use threads, "
                "or llm_batch, which runs its prompts in parallel"
            )
        is_main = threading.get_ident() == self.main
        if is_main:
            self.held += 1
        try:
            with self.cond:
                self.next_id += 1
                number = self.next_id
            body = json.dumps({"id": number, "name": name, "payload": payload}, allow_nan=False).encode(
                "ascii"
            )
            if len(body) > self.max_frame:
                raise ValueError(
                    "this call to {} carries {:.1f} MB; at most {:.0f} MB fit into one".format(
                        name, len(body) / 1e6, self.max_frame / 1e6
                    )
                )
            self.wanted.add(number)
            try:
                self.send("Q", body)
                return self.wait(number)["reply"]
            finally:
                self.wanted.discard(number)
                self.replies.pop(number, None)
        finally:
            if is_main:
                self.held -= 1


def check_prompts(name, prompts):
    if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__iter__"):
        raise TypeError("{}(prompts) takes a list of strings, not {}".format(name, type(prompts).__name__))
    prompts = list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError("{}: prompts[{}] is {}, not str".format(name, i, type(prompt).__name__))
    return [str(p) for p in prompts]


def host_functions(channel, available, on_sub_error):
    """``llm_batch`` and its kin, those of ``available``."""

    def batch(name, prompts, contexts):
        payload = {"prompts": prompts}
        if contexts is not None:
            payload["contexts"] = contexts
        reply = channel.request(name, payload)
        if "error" in reply:
            raise SubCallError("{}: {}".format(reply["error"]["type"], reply["error"]["message"]))
        results, failed = [], []
        for entry in reply["results"]:
            if "text" in entry:
                results.append(entry["text"])
            else:
                results.append(SubCallFailure(entry["error"]["type"], entry["error"]["message"]))
                failed.append(results[-1])
        limit = reply.get("limit")
        if limit:
            raise SubCallLimitError(limit["message"], results)
        if failed and on_sub_error == "raise":
            raise SubCallError(
                "{} of {} sub-calls failed, the first with {}: {} (see .results of this exception)".format(
                    len(failed), len(results), failed[0].type, failed[0].message
                ),
                results,
            )
        return results

    def llm_batch(prompts):
        """Ask a fresh language model each of the prompts, in parallel. Returns the replies as a list of
        strings in the order of the prompts."""
        prompts = check_prompts("llm_batch", prompts)
        return batch("llm_batch", prompts, None) if prompts else []

    def llm_query(prompt):
        """Ask a fresh language model one prompt; returns its reply, a string."""
        if not isinstance(prompt, str):
            raise TypeError("llm_query(prompt) takes a string, not {}".format(type(prompt).__name__))
        return batch("llm_batch", [str(prompt)], None)[0]

    def json_context(value):
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError("context must be text, numbers, lists and dicts: {}".format(error)) from None
        return value

    def rlm_batch(prompts, contexts=None):
        """Like llm_batch, but each prompt is worked on by a model with a REPL of its own, in which
        ``context`` is the matching entry of contexts."""
        prompts = check_prompts("rlm_batch", prompts)
        if contexts is not None:
            contexts = [json_context(c) for c in contexts]
            if len(contexts) != len(prompts):
                raise ValueError("rlm_batch: {} prompts but {} contexts".format(len(prompts), len(contexts)))
        return batch("rlm_batch", prompts, contexts) if prompts else []

    def rlm_query(prompt, context=None):
        """Like llm_query, but worked on by a model with a REPL of its own, holding ``context``."""
        if not isinstance(prompt, str):
            raise TypeError(
                "rlm_query(prompt, context=None) takes a string, not {}".format(type(prompt).__name__)
            )
        contexts = None if context is None else [json_context(context)]
        return batch("rlm_batch", [str(prompt)], contexts)[0]

    made = {f.__name__: f for f in (llm_batch, llm_query, rlm_batch, rlm_query)}
    return {name: made[name] for name in available}


def tool_function(channel, name, description):
    def call(*args, **kwargs):
        try:
            reply = channel.request("tool", {"name": name, "args": list(args), "kwargs": kwargs})
        except TypeError as error:
            raise TypeError("{}: arguments must be JSON values: {}".format(name, error)) from None
        if "error" in reply:
            kind, message = reply["error"]["type"], reply["error"]["message"]
            raise ToolError(message if kind == "ToolError" else "{}: {}".format(kind, message))
        return reply["value"]

    call.__name__ = call.__qualname__ = name
    call.__doc__ = description
    return call


class Repl:
    """A namespace that lives from call to call, and the running of one call."""

    def __init__(self, channel, start, context, capture_fd):
        self.channel = channel
        self.capture_fd = capture_fd
        self.null_fd = os.open(os.devnull, os.O_RDONLY)
        self.answer_chars = start["answer_chars"]
        self.running = False
        self.sources = []
        self.stdio = []
        self.file = __file__
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module  # so that pickle and multiprocessing find the model's functions
        self.names = module.__dict__
        self.names["__builtins__"] = builtins
        self.answer = {"content": start["answer"]["content"], "ready": bool(start["answer"]["ready"])}
        self.sent = None
        self.reserved = {
            "answer": self.answer,
            "context": context,
            "context_files": [name for name, _ in start["files"]],
            "SubCallError": SubCallError,
            "SubCallLimitError": SubCallLimitError,
            "SubCallFailure": SubCallFailure,
            "ToolError": ToolError,
        }
        self.reserved.update(host_functions(channel, start["depth_functions"], start["on_sub_error"]))
        for spec in start["functions"]:
            if spec["source"] is None:
                self.reserved[spec["name"]] = tool_function(channel, spec["name"], spec["description"])
        for number, spec in enumerate(start["functions"]):
            if spec["source"] is not None:
                scope = dict(self.reserved, __name__="__main__", __builtins__=builtins)
                filename = "<function {}>".format(spec["name"])
                self.remember(filename, spec["source"])
                exec(compile(spec["source"], filename, "exec", dont_inherit=True), scope)
                if not callable(scope.get(spec["name"])):
                    raise ValueError("the source of function {0!r} does not define {0}".format(spec["name"]))
                self.reserved[spec["name"]] = scope[spec["name"]]
        self.names.update(self.reserved)
        self.builtin_names = set(self.names)

    def remember(self, filename, source):
        """Lets tracebacks show the lines of code that is in no file."""
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        self.sources.append(filename)
        if len(self.sources) > SOURCES_KEPT:
            linecache.cache.pop(self.sources.pop(0), None)

    def on_sigint(self, signum, frame):
        if not self.running:
            return
        if self.channel.held:
            self.channel.interrupted = True
        else:
            raise KeyboardInterrupt

    def fresh_stdio(self):
        """Model code may have closed, replaced or redirected these in an earlier call."""
        for target in (1, 2):
            os.dup2(self.capture_fd, target)
        os.dup2(self.null_fd, 0)
        if not self.stdio or any(stream.closed for stream in self.stdio):

            def writer(fd):
                # One write per line, so that it interleaves rightly with what subprocesses print.
                return open(fd, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)

            self.stdio = [
                open(0, "r", encoding="utf-8", errors="replace", closefd=False),
                writer(1),
                writer(2),
            ]
        for name, stream in zip(("stdin", "stdout", "stderr"), self.stdio):
            setattr(sys, name, stream)
            setattr(sys, "__{}__".format(name), stream)
        signal.signal(signal.SIGINT, self.on_sigint)
        signal.set_wakeup_fd(self.channel.wake_w, warn_on_full_buffer=False)

    def execute(self, code, filename):
        """Run ``code``; the value of a last expression is echoed as a REPL does."""
        # compile() to the low-level tree: importing ast would double the start-up time.
        tree = compile(code, filename, "exec", ONLY_AST, True)
        last = None
        if tree.body and isinstance(tree.body[-1], _ast.Expr):
            last = _ast.Expression(tree.body.pop().value)
        if tree.body:
            exec(compile(tree, filename, "exec", 0, True), self.names)
        if last is not None:
            value = eval(compile(last, filename, "eval", 0, True), self.names)
            if value is not None:
                vars(builtins)["_"] = value
                sys.stdout.write(self.show(value) + "\n")

    @staticmethod
    def show(value):
        text = repr(value)
        if 100 < len(text) < 20000 and type(value) in (dict, list, tuple, set, frozenset):
            import pprint

            text = pprint.pformat(value, width=110, compact=True, sort_dicts=False)
        return text

    def report(self, error):
        """Print the traceback of ``error``, without the frames of this file. Returns the exception's name."""

        def trim(trace, seen):
            if trace is None or id(trace) in seen:
                return
            seen.add(id(trace))
            # repr() of frames is never taken: locals are not captured.
            trace.stack = traceback.StackSummary.from_list(
                [f for f in trace.stack if f.filename != self.file]
            )
            trim(trace.__cause__, seen)
            trim(trace.__context__, seen)
            for inner in getattr(trace, "exceptions", None) or ():
                trim(inner, seen)

        name = type(error).__name__
        try:
            trace = traceback.TracebackException(type(error), error, error.__traceback__)
            trim(trace, set())
            text = "".join(trace.format())
        except BaseException as second:  # a hostile __str__, no memory left, ...
            text = "{} (its traceback could not be shown: {})\n".format(name, type(second).__name__)
        sys.stdout.flush()
        sys.stderr.write(text)
        return name

    def run(self, number, code):
        error = None
        notes = []
        filename = "<repl {}>".format(number)
        self.channel.interrupted = False
        try:
            self.fresh_stdio()
        except OSError:
            os._exit(1)  # model code closed the descriptors that its output needs: start anew
        try:
            try:
                self.remember(filename, code)
                self.running = True
                self.channel.send("B", b"")  # the supervisor holds interrupts back until now
                self.execute(code, filename)
            finally:
                self.running = False
        except BaseException as caught:
            self.running = False
            try:
                error = self.report(caught)
            except BaseException as second:
                error = type(caught).__name__
                notes.append("the traceback could not be shown ({})".format(type(second).__name__))
        for stream in (sys.stdout, sys.stderr, *self.stdio[1:]):
            try:
                stream.flush()
            except BaseException:
                pass
        if os.getpid() != self.channel.pid:
            os._exit(0)  # a process that model code forked has come to the end of the code
        try:
            restored = self.restore(notes)
            answer = self.read_answer(notes)
        except BaseException as second:  # objects of the model's with hostile methods
            notes.append("reading the answer failed with {}".format(type(second).__name__))
            self.names.update(self.reserved)
            restored, answer = ["answer"], self.sent or {"content": "", "ready": False}
        result = {
            "run": number,
            "error": error,
            "restored": restored,
            "notes": notes,
            "names": self.user_names(),
            "answer": None if answer == self.sent else answer,
        }
        self.sent = answer
        return result

    def restore(self, notes):
        restored = []
        for name, value in self.reserved.items():
            found = self.names.get(name, self.reserved)
            if found is value:
                continue
            if name == "answer" and isinstance(found, dict) and "content" in found:
                # The model plainly means this as its answer.
                self.answer.clear()
                self.answer.update(found)
                self.answer.setdefault("ready", False)
            else:
                restored.append(name)
            self.names[name] = value
        return restored

    def read_answer(self, notes):
        """The answer as plain JSON: content a str of at most ``answer_chars``, ready a bool."""
        if "content" not in self.answer:
            self.answer["content"] = ""
        content, ready = self.answer["content"], self.answer.get("ready", False)
        if not isinstance(content, str):
            try:
                content = str(content)
                kind = type(self.answer["content"]).__name__
                notes.append('answer["content"] was {}, not a string; it was turned into text'.format(kind))
            except BaseException as error:
                notes.append(
                    'answer["content"] is no text and str() of it fails: {}'.format(type(error).__name__)
                )
                content = ""
            self.answer["content"] = content
        content = str.__str__(content)
        if len(content) > self.answer_chars:
            notes.append(
                'answer["content"] has {:,} characters; only the first {:,} are kept'.format(
                    len(content), self.answer_chars
                )
            )
            content = content[: self.answer_chars]
            self.answer["content"] = content
        if not isinstance(ready, bool):
            if isinstance(ready, int) or type(ready).__name__ in ("bool_", "bool"):
                ready = bool(ready)
            elif ready is not None:
                notes.append(
                    'answer["ready"] must be True or False, not {!r:.40}'.format(type(ready).__name__)
                )
                ready = False
            else:
                ready = False
            self.answer["ready"] = ready
        return {"content": content, "ready": ready}

    def user_names(self):
        names = [
            name[:80]
            for name in list(self.names)
            if isinstance(name, str) and not name.startswith("_") and name not in self.builtin_names
        ]
        return sorted(names)[:MAX_NAMES]


def child_main(sock, capture_fd, config):
    """The life of the process that runs model code."""
    channel = Channel(sock, config["frame_bytes"])
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        kind, payload = channel.order()
        start = json.loads(payload)
        context = receive_context(channel, start["context"])
        receive_files(channel, start["files"])
        for entry in reversed(config["site"] or []):
            if entry not in sys.path:
                sys.path.append(entry)
        if config["site"] is None:
            import site

            site.main()
        sys.path.insert(0, "")
        sys.argv = [""]
        # What the site module, left out for speed, would have defined.
        builtins_of_site = {"help": _sitebuiltins._Helper()}  # type: dict[str, object]
        for name in ("exit", "quit"):
            builtins_of_site[name] = _sitebuiltins.Quitter(name, "the end of your code")
        vars(builtins).update(builtins_of_site)
        repl = Repl(channel, start, context, capture_fd)
        del context, start, payload
    except BaseException as error:
        channel.send(
            "E", json.dumps({"message": "{}: {}".format(type(error).__name__, error)[:2000]}).encode()
        )
        channel.order()
        os._exit(1)
    channel.send("H", json.dumps({"python": sys.version.split()[0], "cwd": os.getcwd()}).encode())
    while True:
        kind, payload = channel.order()
        if kind == "X":
            order = json.loads(payload)
            result = json.dumps(repl.run(order["run"], order["code"]), allow_nan=False).encode("ascii")
            channel.held += 1
            channel.send("R", result)
            channel.held -= 1


def receive_bytes(channel, kind, size):
    received = 0
    while received < size:
        got, payload = channel.order()
        if got != kind:
            raise ValueError("frame {!r} while waiting for {!r}".format(got, kind))
        received += len(payload)
        yield payload


def receive_context(channel, meta):
    """The context, streamed in bounded frames so that no frame limit bounds its size."""
    data = b"".join(receive_bytes(channel, "C", meta["bytes"]))
    if meta["kind"] == "none":
        return None
    text = data.decode("utf-8", "surrogatepass")
    del data
    return text if meta["kind"] == "str" else json.loads(text)


def receive_files(channel, files):
    for name, size in files:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError("bad file name {!r}".format(name))
        folder = os.path.dirname(name)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(name, "wb") as out:
            for chunk in receive_bytes(channel, "F", size):
                out.write(chunk)


# --------------------------------------------------------------------------------------------------------
# The supervisor
# --------------------------------------------------------------------------------------------------------


class Output:
    """Captured bytes of one call: the first and the last characters, and the number of all.

    Memory is bounded by ``head + 2 * tail`` characters, whatever is printed.
    """

    def __init__(self, limit):
        self.tail_size = limit // 4
        self.head_size = limit
        self.clear()

    def clear(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.head, self.tail, self.total = "", "", 0

    def feed(self, data, final=False):
        text = self.decoder.decode(data, final)
        self.total += len(text)
        room = self.head_size - len(self.head)
        if room > 0:
            self.head += text[:room]
            text = text[room:]
        if text:
            self.tail = (self.tail + text)[-self.tail_size :] if self.tail_size else ""

    def take(self):
        self.feed(b"", True)
        tail = (self.head + self.tail)[-self.tail_size :]
        value = {"head": self.head, "tail": tail, "total": self.total}
        self.clear()
        return value


class Supervisor:
    def __init__(self, config, host_in, host_out):
        self.config = config
        self.owns_tree = config["isolation"] in ("namespaces", "bwrap") and os.getpid() == 1
        self.host_in, self.host_out = host_in, host_out
        self.to_host, self.to_child = bytearray(), bytearray()
        self.from_host, self.from_child = bytearray(), bytearray()
        self.pass_left = 0  # bytes of a host frame still to be passed on unread
        self.output = Output(config["output_chars"])
        self.run = None
        self.begun = False  # the code of this run is where an interrupt finds it
        self.interrupt_waits = False
        self.child = -1
        self.status = None  # type: int | None
        self.reason = None
        self.stop = False

    def start(self):
        ours, theirs = socket.socketpair()
        self.capture, capture_w = os.pipe()
        wake_r, wake_w = os.pipe()
        for fd in (wake_r, wake_w, self.capture, self.host_in, self.host_out):
            os.set_blocking(fd, False)
        self.wake = wake_r
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.on_term)
        parent = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            try:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                ours.close()
                for fd in (wake_r, wake_w, self.capture, self.host_in, self.host_out):
                    os.close(fd)
                os.setsid()
                confine_child(self.config, parent)
                child_main(theirs, capture_w, self.config)
            except BaseException as error:
                try:
                    message = "{}: {}".format(type(error).__name__, error)[:2000]
                    theirs.setblocking(True)
                    theirs.sendall(pack_json("E", {"message": message}))
                    time.sleep(1)
                finally:
                    os._exit(1)
        theirs.close()
        # capture_w stays open here: without a writer left, the read end would be "ready" for ever.
        self.sock = ours
        self.sock.setblocking(False)

    def on_term(self, signum, frame):
        self.stop = True

    # --- one direction each ---

    def read_host(self):
        data = read(self.host_in)
        if data is None:
            return
        if not data:
            self.stop = True
            return
        self.from_host += data
        while self.from_host:
            if self.pass_left:
                part = self.from_host[: self.pass_left]
                self.to_child += part
                del self.from_host[: len(part)]
                self.pass_left -= len(part)
                continue
            if len(self.from_host) < HEADER.size:
                return
            size, kind = HEADER.unpack_from(self.from_host)
            if kind == ord("K"):
                self.stop = True
                return
            if kind == ord("I"):
                if len(self.from_host) < HEADER.size + size:
                    return
                payload = bytes(self.from_host[HEADER.size : HEADER.size + size])
                del self.from_host[: HEADER.size + size]
                if json.loads(payload)["run"] == self.run:
                    # Sent before the code has begun (on a busy machine), it would be lost.
                    self.interrupt_waits = not self.begun
                    if self.begun:
                        self.interrupt()
                continue
            if kind == ord("X"):
                # The run's number heads the payload, so it is known before the code has come.
                if len(self.from_host) < HEADER.size + min(size, 32):
                    return
                head = bytes(self.from_host[HEADER.size : HEADER.size + 32])
                self.run = int(head.split(b":", 1)[1].split(b",", 1)[0])
                self.begun = self.interrupt_waits = False
                self.signal_all(signal.SIGCONT)
            self.pass_left = HEADER.size + size

    def read_child(self):
        try:
            data = self.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            # Most likely it is dying; its exit status tells more, and comes a moment later.
            for _ in range(400):
                self.reap()
                if self.status is not None or self.stop:
                    return
                time.sleep(0.005)
            self.kill("the REPL process closed its channel")
        self.from_child += data
        while len(self.from_child) >= HEADER.size:
            size, kind = HEADER.unpack_from(self.from_child)
            kind = chr(kind)
            if kind not in "HQREB" or size > self.config["frame_bytes"] + 4096:
                self.kill("the program wrote to the REPL's own channel")
                return
            end = HEADER.size + size
            if len(self.from_child) < end:
                return
            if kind == "B":
                del self.from_child[:end]
                self.begun = True
                if self.interrupt_waits:
                    self.interrupt_waits = False
                    self.interrupt()
                continue
            if kind == "R":
                if self.run is None:
                    # Ahead of its call: the host would take that for over, and its code would run unwatched.
                    self.kill("the program wrote to the REPL's own channel")
                    return
                self.drain()
                self.to_host += pack_json("O", self.output.take())
                self.run = None
                # Between calls nothing of the model's runs: no computing on while the model thinks.
                self.signal_all(signal.SIGSTOP)
            self.to_host += self.from_child[:end]
            del self.from_child[:end]

    def drain(self):
        """Take what is in the capture pipe. Bounded by the largest pipe there is (1 MiB for an ordinary
        user), so that a background printer cannot hold this up for ever."""
        for _ in range(1 + (1 << 20) // CHUNK):
            data = read(self.capture)
            if not data:
                return
            self.output.feed(data)

    def interrupt(self):
        # The whole group, as a terminal does: os.system() waits for its child with SIGINT ignored.
        for kill, pid in ((os.killpg, self.child), (os.kill, self.child)):
            try:
                kill(pid, signal.SIGINT)
                if os.getpgid(self.child) == self.child:
                    return
            except OSError:
                pass

    # --- the process tree ---

    def kill(self, reason):
        """End the child and all that it started; the loop then reports the death."""
        if self.reason is None:
            self.reason = reason
        try:
            os.kill(self.child, signal.SIGKILL)
        except OSError:
            pass

    def reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.status = status

    def watch(self):
        """Backstop for limits that the kernel counts by process: all processes' memory and number."""
        below = self.processes()
        count, anonymous, shared = memory_of(below, "status", "Rss")
        limit = self.config["memory_mb"]
        if limit and anonymous + shared > limit << 20:
            # That counted what processes share once for each: look closer, which takes longer.
            _, anonymous, shared = memory_of(below, "smaps_rollup", "Pss_")
            if self.owns_tree:
                # Maps of files in the scratch directory count there.
                scratch = os.statvfs(SCRATCH)
                shared -= min(shared, (scratch.f_blocks - scratch.f_bfree) * scratch.f_frsize)
        used = anonymous + shared
        if limit and used > limit << 20:
            self.kill("memory: {} MB in use, memory_mb is {}".format(used >> 20, limit))
        elif self.config["processes"] and count > self.config["processes"] + 8:
            self.kill("processes: {} running, the limit is {}".format(count, self.config["processes"]))
        if self.owns_tree:
            # bubblewrap cannot limit the number of files, and each costs kernel memory.
            files = os.statvfs(SCRATCH)
            if files.f_files - files.f_ffree > MAX_FILES:
                self.kill("files: more than {:,} in the scratch directory".format(MAX_FILES))

    def processes(self):
        """Every process below this one, except itself."""
        if not os.path.exists("/proc/self/stat"):
            return []
        me = os.getpid()
        if self.owns_tree:
            return [int(p) for p in os.listdir("/proc") if p.isdigit() and p != "1"]
        found, queue = [me], [me]
        while queue and len(found) < 100000:
            pid = queue.pop()
            try:
                for thread in os.listdir("/proc/{}/task".format(pid)):
                    with open("/proc/{}/task/{}/children".format(pid, thread)) as f:
                        below = [int(p) for p in f.read().split()]
                    found += below
                    queue += below
            except OSError:
                continue
        return found[1:]

    def signal_all(self, number):
        """In a process namespace of its own: one sweep under the kernel's task lock, which nothing can fork
        its way out of. Elsewhere there is no such thing, and nothing is sent."""
        if self.owns_tree:
            try:
                os.kill(-1, number)
            except OSError:
                pass

    def kill_all(self):
        if self.owns_tree:
            self.signal_all(signal.SIGKILL)
            return
        deadline = time.monotonic() + 5  # the kernel may take a while over what it has to kill
        while time.monotonic() < deadline:
            below = self.processes() or ([self.child] if self.status is None else [])
            if not below:
                return
            for pid in below:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            self.reap()
            time.sleep(0.005)

    def flush(self):
        if self.to_host:
            try:
                sent = os.write(self.host_out, self.to_host[: 1 << 18])
                del self.to_host[:sent]
            except BlockingIOError:
                pass
            except OSError:
                self.stop = True

    def loop(self):
        watched = 0.0
        while not self.stop and self.status is None:
            poller = select.poll()
            poller.register(self.wake, select.POLLIN)
            poller.register(self.capture, select.POLLIN)
            poller.register(self.host_in, select.POLLIN if len(self.to_child) < BUFFERED else 0)
            if self.to_host:
                poller.register(self.host_out, select.POLLOUT)
            want = (select.POLLIN if len(self.to_host) < BUFFERED else 0) | (
                select.POLLOUT if self.to_child else 0
            )
            poller.register(self.sock, want)
            busy = self.run is not None
            events = dict(poller.poll(100 if busy else None))
            if busy and time.monotonic() - watched > 0.1:
                self.watch()
                watched = time.monotonic()
            if self.wake in events:
                read(self.wake)
                self.reap()
            if self.capture in events:
                data = read(self.capture)
                if data:
                    self.output.feed(data)
            fd = self.sock.fileno()
            if events.get(fd, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR) and self.reason is None:
                self.read_child()
            if events.get(fd, 0) & select.POLLOUT and self.to_child:
                try:
                    sent = self.sock.send(self.to_child[: 1 << 18])
                    del self.to_child[:sent]
                except OSError:
                    pass
            if self.host_in in events:
                self.read_host()
            self.flush()
        if self.status is not None and not self.stop:
            self.report_death(self.status)
        self.kill_all()

    def report_death(self, code):
        self.kill_all()
        self.drain()
        if os.WIFSIGNALED(code):
            number = os.WTERMSIG(code)
            how = "killed by signal {}".format(number)
            if number == signal.SIGXCPU:
                how = "it used up its {} CPU seconds".format(self.config["cpu_seconds"])
            elif number == signal.SIGSEGV:
                how = "it crashed (segmentation fault)"
            elif number == signal.SIGKILL and self.reason is None:
                how = "killed (signal 9), most likely for lack of memory"
        else:
            how = "it exited with code {}".format(os.WEXITSTATUS(code))
        self.to_host += pack_json("O", self.output.take())
        self.to_host += pack_json("D", {"reason": self.reason or how})
        os.set_blocking(self.host_out, True)
        deadline = time.monotonic() + 5
        while self.to_host and not self.stop and time.monotonic() < deadline:
            if select.select([], [self.host_out], [], 0.5)[1]:
                self.flush()


def memory_of(pids, name, prefix):
    """(processes still there, bytes of private memory, bytes of shared maps and of files in memory) by
    /proc. ``Rss`` of ``status``: all that each has. ``Pss_`` of ``smaps_rollup``: what processes share is
    divided among them."""
    count, found = 0, {prefix + "Anon": 0, prefix + "Shmem": 0}
    for pid in pids:
        try:
            with open("/proc/{}/{}".format(pid, name)) as f:
                lines = f.readlines()
        except OSError:
            continue
        count += 1
        for line in lines:
            key, _, value = line.partition(":")
            if key in found:
                found[key] += int(value.split()[0]) << 10
    return count, found[prefix + "Anon"], found[prefix + "Shmem"]


def read(fd):
    """Bytes, b"" at the end, None when there are none now."""
    try:
        return os.read(fd, CHUNK)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise


# --------------------------------------------------------------------------------------------------------
# Confinement (Linux; isolation.py on the host decides what is used and says why)
# --------------------------------------------------------------------------------------------------------

SCRATCH = "/scratch"
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_RECURSIVE = 0x8000
SYS_MOUNT_SETATTR, SYS_LANDLOCK = 442, 444  # the same numbers on every architecture
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38


class Kernel:
    """System calls that the standard library does not have."""

    def __init__(self):
        import ctypes

        self.c = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long

    def check(self, what, result):
        if result < 0:
            number = self.c.get_errno()
            raise OSError(number, "{}: {}".format(what, os.strerror(number)))
        return result

    def prctl(self, option, a=0, b=0):
        long = self.c.c_ulong
        return self.check(
            "prctl({})".format(option),
            self.libc.prctl(option, long(a), b if b else long(0), long(0), long(0)),
        )

    def syscall(self, what, number, *arguments):
        wrapped = [self.c.c_long(a) if isinstance(a, int) else a for a in arguments]
        return self.check(what, self.libc.syscall(self.c.c_long(number), *wrapped))

    def unshare(self, flags):
        self.check("unshare", self.libc.unshare(flags))

    def mount(self, source, target, kind, flags, data=None):
        def encode(text):
            return None if text is None else os.fsencode(text)

        result = self.libc.mount(
            encode(source), encode(target), encode(kind), self.c.c_ulong(flags), encode(data)
        )
        self.check("mount {}".format(target), result)

    def set_mount(self, target, flags, recursive=True):
        attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
        self.syscall(
            "mount_setattr {}".format(target),
            SYS_MOUNT_SETATTR,
            -100,
            os.fsencode(target),
            AT_RECURSIVE if recursive else 0,
            attributes,
            len(attributes),
        )

    def pivot_root(self, new, old):
        number = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}.get(
            os.uname().machine
        )
        if number is None:
            raise OSError(errno.ENOSYS, "pivot_root is not known on {}".format(os.uname().machine))
        self.syscall("pivot_root", number, os.fsencode(new), os.fsencode(old))

    def umount(self, target):
        self.check("umount {}".format(target), self.libc.umount2(os.fsencode(target), 2))

    def drop_capabilities(self):
        for number in range(64):
            try:
                self.prctl(PR_CAPBSET_DROP, number)
            except OSError:
                continue
        header = struct.pack("=Ii", 0x20080522, 0)
        self.check("capset", self.libc.capset(header, struct.pack("=6I", *[0] * 6)))

    def landlock_abi(self):
        return self.libc.syscall(self.c.c_long(SYS_LANDLOCK), None, self.c.c_long(0), self.c.c_long(1))

    def landlock(self):
        """Second layer under the mounts: read everywhere (the view holds nothing secret), write in the
        scratch directory only, no TCP, no signal and no abstract socket out of this process tree."""
        abi = self.landlock_abi()
        if abi < 1:
            return
        files = (1 << (16 if abi >= 5 else 15 if abi >= 3 else 14 if abi >= 2 else 13)) - 1
        network = 3 if abi >= 4 else 0
        scope = 3 if abi >= 6 else 0
        size = 24 if abi >= 6 else 16 if abi >= 4 else 8
        attributes = struct.pack("=QQQ", files, network, scope)[:size]
        ruleset = self.syscall("landlock_create_ruleset", SYS_LANDLOCK, attributes, size, 0)
        read = 1 | 4 | 8
        devices = 1 << 6 | 1 << 11  # making character or block devices
        for path, access in (
            ("/", read),
            (SCRATCH, files & ~devices),
            ("/dev/null", 2 | 4 | (files & 1 << 14)),
            ("/dev/zero", 2 | 4),
            ("/dev/full", 2 | 4),
        ):
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            rule = struct.pack("=Qi", access, handle)
            self.syscall("landlock_add_rule", SYS_LANDLOCK + 1, ruleset, 1, rule, 0)
            os.close(handle)
        self.syscall("landlock_restrict_self", SYS_LANDLOCK + 2, ruleset, 0)
        os.close(ruleset)

    def seccomp(self, program):
        """Load a BPF program (bytes) made by libseccomp on the host."""
        buffer = self.c.create_string_buffer(program, len(program))

        # struct sock_fprog: the number of instructions, padding, their address.
        value = struct.pack("@HP", len(program) // 8, self.c.addressof(buffer))
        self.prctl(PR_SET_SECCOMP, 2, value)


def enter_namespaces(kernel, config):
    """Fork into new namespaces; returns in the process that is pid 1 there. The caller's own process stays
    outside as a stub which only waits: the host sees its life as the worker's."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if config["privileged"]:
        kernel.unshare(flags)
    else:
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(flags | CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", "1000 {} 1".format(uid)),
            ("gid_map", "1000 {} 1".format(gid)),
        ):
            with open("/proc/self/{}".format(name), "w") as f:
                f.write(text)
    null = os.open(os.devnull, os.O_RDWR)  # now: the new process takes this one's file system away
    pid = os.fork()
    if pid:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
        os.dup2(null, 0)
        os.dup2(null, 1)
        _, status = os.waitpid(pid, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    os.close(null)


def build_view(kernel, config):
    """The file system as model code sees it: the Python installation and system libraries read-only, a few
    device files, its own /proc, one size-limited scratch directory; nothing else exists."""
    kernel.mount(None, "/", None, MS_REC | MS_PRIVATE)
    base = "/tmp"
    kernel.mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.chdir(base)
    os.mkdir("new")
    os.mkdir("old")
    kernel.pivot_root(".", "old")
    os.chdir("/")
    kernel.mount("tmpfs", "/new", "tmpfs", MS_NOSUID, "mode=755,size=1m,nr_inodes=4096")
    for path, link in config["links"]:
        make_parents("/new", path)
        os.symlink(link, "/new" + path)
    for source, path in config["binds"]:
        target = "/new" + path
        make_parents("/new", path)
        if os.path.isdir("/old" + source):
            os.makedirs(target, exist_ok=True)
        else:
            open(target, "w").close()
        kernel.mount("/old" + source, target, None, MS_BIND | MS_REC)
        kernel.set_mount(target, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for path in config["covered"]:
        if os.path.isdir("/new" + path):
            kernel.mount("tmpfs", "/new" + path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4k")
        else:
            kernel.mount("/old/dev/null", "/new" + path, None, MS_BIND)
        kernel.set_mount("/new" + path, ATTR_RDONLY | ATTR_NOSUID)
    os.makedirs("/new/dev", exist_ok=True)
    for name in ("null", "zero", "full", "random", "urandom"):
        open("/new/dev/" + name, "w").close()
        kernel.mount("/old/dev/" + name, "/new/dev/" + name, None, MS_BIND)
    for name, link in (
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("shm", SCRATCH + "/.shm"),
    ):
        os.symlink(link, "/new/dev/" + name)
    os.makedirs("/new/etc", exist_ok=True)
    with open("/new/etc/passwd", "w") as f:
        f.write(
            "repl:x:{0}:{0}::{1}:/bin/sh\n".format(config["uid"] if config["privileged"] else 1000, SCRATCH)
        )
    os.mkdir("/new/proc")
    try:
        kernel.mount("proc", "/new/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        pass  # masked in some containers; nothing here depends on it
    os.mkdir("/new" + SCRATCH)
    kernel.mount(
        "tmpfs",
        "/new" + SCRATCH,
        "tmpfs",
        MS_NOSUID | MS_NODEV,
        "mode=1777,size={}m,nr_inodes={}".format(config["scratch_mb"], MAX_FILES),
    )
    if not os.path.isdir("/new/tmp"):
        # A Python that lives below /tmp needs it as a folder; TMPDIR is the scratch either way.
        os.symlink(SCRATCH + "/.tmp", "/new/tmp")
    os.chdir("/new")
    kernel.pivot_root(".", ".")
    kernel.umount(".")
    os.chdir("/")
    kernel.set_mount("/", ATTR_RDONLY | ATTR_NOSUID, recursive=False)
    with open_quietly("/proc/sys/user/max_user_namespaces") as f:
        f.write("0")  # in a user namespace of our own this binds all below it; elsewhere it is refused


class open_quietly:
    """A file that need not be there or writable."""

    def __init__(self, path):
        try:
            self.file = open(path, "w")
        except OSError:
            self.file = open(os.devnull, "w")

    def __enter__(self):
        return self.file

    def __exit__(self, *_):
        try:
            self.file.close()
        except OSError:
            pass


def make_parents(root, path):
    os.makedirs(root + os.path.dirname(path), exist_ok=True)


def drop_user(kernel, config):
    """Shed every privilege that the set-up needed."""
    if config["privileged"]:
        # An id that no account has and no other worker shares: file permissions and the kernel's count of
        # processes are this worker's own.
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    kernel.drop_capabilities()


def confine_child(config, parent):
    """Limits and filters of the process that runs model code, set just before it does."""
    import resource

    linux = sys.platform == "linux"
    isolated = config["isolation"] in ("namespaces", "bwrap")
    kernel = None
    if linux:
        try:
            kernel = Kernel()
        except ImportError:  # a Python without ctypes, in a container
            if isolated:
                raise
    limits = [
        # Where core_pattern is a pipe, a dump starts a program of the machine's, as root, even at a limit of
        # 0. The kernel makes an exception of 1.
        ("RLIMIT_CORE", 1),
        ("RLIMIT_AS", config["memory_mb"] and config["memory_mb"] << 20),
        ("RLIMIT_NOFILE", config["open_files"]),
        ("RLIMIT_FSIZE", config["scratch_mb"] and config["scratch_mb"] << 20),
    ]
    if isolated:
        # In a user namespace these are counted with those of the user who started us.
        limits += [("RLIMIT_SIGPENDING", 1024), ("RLIMIT_MSGQUEUE", 0)]
    if isolated and config["count_processes"]:
        limits.append(("RLIMIT_NPROC", config["processes"]))
    for name, value in limits:
        if value is not None and hasattr(resource, name) and (linux or name != "RLIMIT_AS"):
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(number, (value, value))
    if config["cpu_seconds"]:
        resource.setrlimit(resource.RLIMIT_CPU, (config["cpu_seconds"], config["cpu_seconds"] + 5))
    if kernel is None:
        return
    kernel.prctl(PR_SET_DUMPABLE, 1)
    with open_quietly("/proc/self/oom_score_adj") as f:
        f.write("1000")  # short of memory, the kernel takes this process first
    if not isolated:
        kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    kernel.prctl(PR_SET_NO_NEW_PRIVS, 1)
    if isolated:
        if config["landlock"]:
            kernel.landlock()
        if config["seccomp"]:
            import base64

            kernel.seccomp(base64.b64decode(config["seccomp"]))


def make_scratch(config):
    """Make and enter the directory that model code works in; returns what has to be removed at the end."""
    if config["isolation"] in ("namespaces", "bwrap"):
        home, made = SCRATCH, None
    else:
        # Under the runtime's own directory when that is private (it is removed with the runtime).
        parent = os.getcwd() if config["isolation"] == "none" else "/tmp"
        home = made = os.path.join(parent, "repl-" + os.urandom(8).hex())
        os.mkdir(home, 0o700)
    for name in (".tmp", ".shm", "work"):
        os.mkdir(os.path.join(home, name), 0o1777)
    os.chdir(os.path.join(home, "work"))
    os.environ["TMPDIR"] = os.path.join(home, ".tmp")
    if config["isolation"] != "container":
        os.environ["HOME"] = os.path.join(home, "work")
    return made


def main():
    config = json.loads(sys.argv[1])
    sys.dont_write_bytecode = True
    isolated = config["isolation"] in ("namespaces", "bwrap")
    if isolated:
        kernel = Kernel()
        if config["isolation"] == "namespaces":
            enter_namespaces(kernel, config)
            build_view(kernel, config)
        os.umask(0o022)
        drop_user(kernel, config)
        kernel.prctl(PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Not dumpable: model code, which has the same user id, can neither trace nor read this process.
        kernel.prctl(PR_SET_DUMPABLE, 0)
    elif sys.platform == "linux":
        try:
            Kernel().prctl(PR_SET_CHILD_SUBREAPER, 1)  # what model code orphans comes to us to be killed
        except ImportError:
            pass
    scratch = make_scratch(config)
    host_in, host_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    supervisor = Supervisor(config, host_in, host_out)
    try:
        supervisor.start()
        supervisor.loop()
    finally:
        supervisor.kill_all()
        if scratch is not None:
            import shutil

            shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)

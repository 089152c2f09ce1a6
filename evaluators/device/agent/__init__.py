"""What times networks on the machine that runs them: this one, or another that these modules are sent to.

They need Python 3.8, numpy and onnxruntime, and nothing else of lownas. `runtimes/` imports them; `remote.py` sends
them over SSH as one program, which answers requests there (`serving`) until its input ends.
"""

from __future__ import annotations

from pathlib import Path

MODULES = ("lock", "machine_state", "timing", "models", "serving")
"""In the order in which they import each other."""

_PROGRAM = """
import sys, types
package = types.ModuleType("lownas_agent")
package.__path__ = []
sys.modules[package.__name__] = package
for name, text in {texts!r}.items():
    module = types.ModuleType("lownas_agent." + name)
    module.__package__ = package.__name__
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(text, "lownas-agent/" + name + ".py", "exec"), module.__dict__)
package.serving.serve()
"""


def program() -> bytes:
    """The modules as one program that makes them anew where it runs, and serves."""
    texts = {name: (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    return _PROGRAM.format(texts=texts).encode()

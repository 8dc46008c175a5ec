"""The emulated plug-in computes with the device's kernels alone: nothing of kernels/cpu or kernels/ref
is linked into it. Arguments by environment: SL_PLUGIN, SL_KERNELS (the archive), SL_SOURCE."""
import os
import re
import subprocess
import unittest
from pathlib import Path


def nm(path):
    return subprocess.run(["nm", "-A", "-C", "--defined-only", path], capture_output=True, text=True,
                          check=True).stdout


class Emulated(unittest.TestCase):
    def test_no_object_of_other_backends(self):
        kernels = Path(os.environ["SL_SOURCE"], "kernels")
        own = {p.name for p in kernels.glob("*.c")}
        theirs = {p.name for d in ("cpu", "ref") for p in (kernels / d).glob("*.c")} - own
        symbols = {m[2] for m in re.finditer(r"^[^:]+:(\S+)\.o:\S+ T (\w+)$",
                                             nm(os.environ["SL_KERNELS"]), re.M)
                   if m[1] in theirs}
        self.assertTrue({"sl_cpu_open", "sl_ref_open"} <= symbols, symbols)
        linked = set(re.findall(r" [tT] (\w+)$", nm(os.environ["SL_PLUGIN"]), re.M))
        self.assertIn("cuda_linear", linked)
        self.assertEqual(symbols & linked, set())


if __name__ == "__main__":
    unittest.main()

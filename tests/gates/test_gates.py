"""The gates can fail: planted kernels, changed golden figures, missing rules, unwanted libraries."""
import copy
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import gates
import sass

HERE = Path(__file__).parent
FLAGS = ["-Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage", "-arch=sm_80"]


def compile_planted(folder, *flags):
    """Runs as compile.sh does; the path of ptxas' words and the status."""
    log = Path(folder, "planted.ptxas")
    done = subprocess.run([os.environ["SL_NVCC"], *FLAGS, *flags, "-cubin", HERE / "planted.cu",
                           "-o", Path(folder, "planted.cubin")], capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr)
    return log, done.returncode


class Planted(unittest.TestCase):
    def test_build_fails(self):
        for plant in ([], ["-DPLANT_SPILL"]):
            with tempfile.TemporaryDirectory() as folder:
                log, status = compile_planted(folder, "-Xptxas=-Werror", *plant)
                self.assertNotEqual(status, 0)
                self.assertIn("ptxas error", log.read_text())

    def test_figures_fail(self):
        with tempfile.TemporaryDirectory() as folder:
            log, status = compile_planted(folder, "-DPLANT_SPILL")
            self.assertEqual(status, 0)
            g = gates.Gates()
            gates.add_ptxas(g, [log], ["80"], [])
            self.assertEqual(sorted(n for _, n in g.figures), ["planted_array", "planted_spill"])
            gates.check_rules(g, [(r"planted_.*", dict(need=[], ban=[]))])
            for want in ("planted_array: 256 bytes of stack", "bytes of spills"):
                self.assertTrue(any(want in f for f in g.failures), g.failures)
            tools = list(Path(os.environ["SL_GATES_VENV"]).glob("lib/*/*/nvidia/*/bin/cuobjdump"))
            if not tools:
                self.skipTest("no disassembler from PyPI")
            os.environ["PATH"] = f"{tools[0].parent}:{os.environ['PATH']}"
            found = sass.disassemble(str(tools[0]), str(Path(folder, "planted.cubin")), "80")
            self.assertGreater(found["planted_array"]["sass"]["STL"], 0)


class Golden(unittest.TestCase):
    def setUp(self):
        _, self.golden = gates.read_golden(os.environ["SL_GOLDEN"])
        self.key = next(k for k in self.golden if k[0] == "80" and "linear_tiles<q8_0" in k[1])

    def figures(self):
        """As if the golden file were what the build has."""
        g = gates.Gates()
        for key, row in self.golden.items():
            f = {c: int(row[c]) for c in gates.COLUMNS}
            f["sass"] = {k[1:]: int(v) for k, v in row.items() if k.startswith("#")}
            g.figures[key] = f
        return g

    def differences(self, g):
        gates.compare_golden(g, self.golden, ["80"])
        gates.check_rules(g)
        return g.failures

    def test_same(self):
        self.assertEqual(self.differences(self.figures()), [])

    def test_changed(self):
        for change in (dict(registers=255), dict(spills=4), dict(code_bytes=1), dict(shared=16)):
            g = self.figures()
            g.figures[self.key].update(change)
            self.assertTrue(self.differences(g), change)

    def test_changed_counts(self):
        for op in ("IMMA.16832.S8.S8", "LDGSTS.128", "LDS.128", "BAR"):
            g = self.figures()
            g.figures[self.key] = copy.deepcopy(g.figures[self.key])
            g.figures[self.key]["sass"][op] = 0
            self.assertTrue(any(f"no {op}" in f for f in self.differences(g)), op)
        for op in ("LDL", "MUFU.EX2"):
            g = self.figures()
            g.figures[self.key]["sass"][op] = 1
            self.assertTrue(any(f"1 x {op}" in f for f in self.differences(g)), op)

    def test_gone_and_new(self):
        g = self.figures()
        g.figures["80", "nobody_knows_it"] = g.figures.pop(self.key)
        failures = "\n".join(self.differences(g))
        for want in ("gone", "not in the golden file", "no rule"):
            self.assertIn(want, failures)


class Plugin(unittest.TestCase):
    def test_library(self):
        for source, want in (("int cuInit(int); int f(void) { return cuInit(0); }", "wants cuInit"),
                             ("int f(void) { return 1; }", "exports f")):
            with tempfile.TemporaryDirectory() as folder:
                so = str(Path(folder, "x.so"))
                subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", so], input=source,
                               text=True, check=True)
                g = gates.Gates()
                gates.check_plugin(g, so)
                self.assertTrue(any(want in f for f in g.failures), g.failures)

    def test_real(self):
        g = gates.Gates()
        gates.check_plugin(g, os.environ["SL_PLUGIN"])
        self.assertEqual(g.failures, [])


class Parsing(unittest.TestCase):
    def test_instructions(self):
        for op, key in (("LDG.E.128.CONSTANT", "LDG.128"), ("LDS", "LDS.32"), ("LDS.U.64", "LDS.64"),
                        ("LDGSTS.E.BYPASS.128", "LDGSTS.128"), ("STG.E.U16", "STG.U16"),
                        ("LDSM.16.M88.4", "LDSM.4"), ("HFMA2.MMA", None), ("STL.64", "STL"),
                        ("HMMA.16816.F32.BF16", "HMMA.16816.F32.BF16"), ("FFMA.FTZ", "FFMA.FTZ"),
                        ("BAR.SYNC.DEFER_BLOCKING", "BAR"), ("MUFU.EX2", "MUFU.EX2"),
                        ("IMAD.MOV.U32", None)):
            self.assertEqual(sass.instruction_key(op), key, op)

    def test_names(self):
        for name, short in (
                ("void (anonymous namespace)::a<(sl_dtype)1, 2>(b, (anonymous namespace)::c)",
                 "a<f16, 2>"), ("add(float*, float const*, unsigned long)", "add")):
            self.assertEqual(sass.short_name(name, ["f32", "f16"]), short)


if __name__ == "__main__":
    unittest.main()

"""A first load of a .pt2 file in a process of its own, with limits of memory, time and files.

A graph may ask for any amount of memory or time when it runs, which no check of its text can tell.
So it is loaded and called once where that ends a child process and not the evaluation. The child
has none of this process's environment but what Python needs, so no credentials, and it may write no
file. It is no sandbox: it runs as the same user, with the network."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sat_ray
from sat_ray.models.pt2.archive import checked_archive

IMAGES = 2
CPU_SECONDS = 300
MEMORY_SHARE = 0.5  # of what the machine has left now
KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS", "VIRTUAL_ENV")


def try_in_child(
    data: bytes,
    shape: Sequence[int],
    *,
    memory_bytes: int | None = None,
    cpu_seconds: int = CPU_SECONDS,
) -> None:
    """Load a .pt2 file and call it on a few images in a child process.

    shape: (C, H, W) of the images; memory_bytes: what the child may take beyond its libraries, half
    of what is free by default. ValueError is a sentence without its subject.
    """
    checked = checked_archive(data)
    budget = int(MEMORY_SHARE * _available_bytes()) if memory_bytes is None else memory_bytes
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {
        "PYTHONPATH": str(Path(sat_ray.__file__).parent.parent),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-P", "-m", "sat_ray.models.pt2.trial_load"]
    command += [json.dumps([*shape]), str(budget), str(cpu_seconds)]
    limits = f"{budget / 1024**3:.1f} GiB of memory and {cpu_seconds} s of CPU time"
    with tempfile.TemporaryDirectory(prefix="sat_ray-trial-") as folder:
        try:
            done = subprocess.run(
                command,
                input=checked,
                capture_output=True,
                env=environment,
                cwd=folder,
                timeout=10 * cpu_seconds + 120,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"did not end a trial within {limits}; export a smaller model"
            ) from None
    if done.returncode == 0:
        return
    said = done.stdout.decode(errors="replace").strip().splitlines()
    if said and said[-1].startswith("refused: "):
        raise ValueError(said[-1].removeprefix("refused: "))
    raise ValueError(
        f"cannot be loaded and called on {IMAGES} images within {limits} (the trial process ended "
        f"with status {done.returncode}); export a smaller model, or use a larger machine"
    )


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Set the limits of this process; memory counts from what it has mapped already, libraries for
    the most part."""
    mapped = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> int:
    import torch

    from sat_ray.models.pt2.load import load_exported

    shape = json.loads(sys.argv[1])
    memory_bytes = int(sys.argv[2])
    cpu_seconds = int(sys.argv[3])
    data = sys.stdin.buffer.read()
    tempfile.gettempdir()  # Python finds it by writing a file, which the limits forbid
    _limit(memory_bytes, cpu_seconds)
    try:
        model = load_exported(data, device=torch.device("cpu"))
        images = torch.rand(
            model.batch_size or IMAGES, *shape, generator=torch.Generator().manual_seed(0)
        )
        model(images)
    except ValueError as error:
        print(f"refused: {' '.join(str(error).splitlines())}", flush=True)
        return 1
    except MemoryError:
        return 2
    except Exception as error:
        # torch says alloc where memory is refused; otherwise the images do not fit, and the
        # evaluation reports that
        return 2 if "alloc" in str(error) else 0
    return 0


if __name__ == "__main__":
    os._exit(_main())  # nothing of the model's runs after its trial

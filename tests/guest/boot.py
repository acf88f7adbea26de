"""``nox -s kernel -- [package...]``: the tests on a Debian kernel in qemu (TCG, no KVM), with this machine's root.

The kernel package is downloaded and unpacked, never installed. The guest sees the root of the host read-only over 9p
beneath an overlay in memory, so that nothing that a test writes stays. The cloud kernels have no 9p.
As root, with qemu-system-x86 and busybox-static of Debian.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
STATUS = re.compile(rb"^init: status (\d+)\r?$", re.MULTILINE)


def unpack(package: str, folder: Path) -> Path:
    """The package's files; `package` is a name for apt, or a .deb that is here already."""
    deb = Path(package)
    if deb.suffix != ".deb":
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (deb,) = folder.glob(f"{package}_*.deb")
    files = folder / deb.stem
    shutil.rmtree(files, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", str(deb), str(files)], check=True)
    return files


def modules_of(files: Path) -> Path:
    """The folder of modules, with the table that depmod makes when a package is installed."""
    (modules,) = files.glob("lib/modules/*")
    subprocess.run(["busybox", "depmod", "-b", str(files), modules.name], check=True)
    return modules


def load_order(modules: Path) -> list[Path]:
    """The files of NEEDED, each after what it depends on. What is built in has no line in modules.dep."""
    lines = (line.split() for line in (modules / "modules.dep").read_text().splitlines())
    table = {Path(first[:-1]).name.split(".")[0].replace("-", "_"): (first[:-1], rest) for first, *rest in lines}
    # modules.dep gives the dependencies with the nearest first
    paths = [path for name in NEEDED if name in table for path in (*reversed(table[name][1]), table[name][0])]
    return [modules / path for path in dict.fromkeys(paths)]


def write_initramfs(modules: Path, command: list[str], folder: Path) -> Path:
    tree = folder / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "modules", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", tree / "bin" / "busybox")
    shutil.copy(HERE / "init", tree / "init")
    (tree / "init").chmod(0o755)
    order = load_order(modules)
    for path in order:
        shutil.copy(path, tree / "modules")
    (tree / "modules" / "order").write_text("".join(f"{path.name}\n" for path in order))
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    quoted = f"export HOME=/root TERM=dumb PATH={path}\ncd {shlex.quote(str(PROJECT))}\n{shlex.join(command)}\n"
    (tree / "command").write_text(quoted)
    image = folder / "initramfs.cpio"
    with image.open("wb") as file:
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        subprocess.run(["busybox", "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(), stdout=file, check=True)
    return image


def boot(files: Path, modules: Path, image: Path, log: Path) -> int:
    """Run the guest until it powers itself off; the exit status of the command in it."""
    (kernel,) = files.glob("boot/vmlinuz-*")
    shares = []
    for tag, path in (("host", "/"), ("modules", str(modules.parent))):
        shares += ["-fsdev", f"local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"]
        shares += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    machine = ["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "4G", "-nodefaults", "-nographic", "-no-reboot"]
    # a guest that panics reboots, which -no-reboot makes an end
    parameters = ["-append", "console=ttyS0 quiet panic=-1"]
    command = ["nice", "qemu-system-x86_64", *machine, "-serial", "stdio", *shares, *parameters]
    with (
        subprocess.Popen(
            [*command, "-kernel", str(kernel), "-initrd", str(image)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as qemu,
        log.open("wb") as file,
    ):
        assert qemu.stdout is not None
        for line in qemu.stdout:
            file.write(line)
            file.flush()
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
    found = STATUS.findall(log.read_bytes())
    return int(found[-1]) if found else 255


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the package, the image and the log")
    parser.add_argument("--package", required=True, help="name of a linux-image package, or a .deb")
    parser.add_argument("command", nargs="+", help="run in the guest, in the project's folder")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = unpack(options.package, folder)
    modules = modules_of(files)
    image = write_initramfs(modules, options.command, folder)
    return boot(files, modules, image, folder / "console.log")


if __name__ == "__main__":
    sys.exit(main())

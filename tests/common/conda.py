"""Stands where conda (or micromamba, by its name) would: it writes down how it is called, makes real
environments of the Python that runs it, has the packages of `channel.json`, and says what conda says.
"""
import json
import os
import subprocess
import sys

here = os.path.abspath(__file__)
root = os.path.dirname(os.path.dirname(here))
name = os.path.basename(here)
args = sys.argv[1:]


def value(option):
    return args[args.index(option) + 1]


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def fail(text):
    print("Collecting package metadata (repodata.json): done\nSolving environment: failed\n", flush=True)
    print(text, file=sys.stderr, flush=True)
    sys.exit(1)


def record_of(prefix, package, version):
    url = "https://h/conda-forge/%s-%s-0.conda" % (package, version)
    entry = {"name": package, "version": version, "channel": "https://h/conda-forge", "url": url, "md5": "c0ffee"}
    write("%s/conda-meta/%s-%s-0.json" % (prefix, package, version), json.dumps(entry))


if args == ["--version"]:
    print("1.5.8" if name == "micromamba" else "conda 24.1.2")
    sys.exit(0)

call = {"args": args, "channels": os.environ.get("CONDA_CHANNELS"), "prefix": os.environ.get("CONDA_PREFIX")}
document = {"channels": (call["channels"] or "").split(","), "dependencies": []}
if "--file" in args:
    with open(value("--file")) as file:
        text = file.read()
    if text.startswith("@EXPLICIT"):
        call["explicit"] = text.splitlines()[1:]
    else:
        call["file"] = document = json.loads(text)
        document.setdefault("channels", [])
    call["mode"] = oct(os.stat(value("--file")).st_mode & 0o777)
with open(os.path.join(root, "calls.jsonl"), "a") as file:
    file.write(json.dumps(call) + "\n")

prefix = value("--prefix")
if args[:2] == ["env", "export"]:
    print(json.dumps({"name": "x", "prefix": prefix, "channels": ["c"], "dependencies": ["python=3"]}))
    sys.exit(0)

wanted = [word for word in args if word == "pip" or word.startswith("python=")]
wanted += document["dependencies"]
for line in call.get("explicit", []):
    package, found = line.rsplit("/", 1)[1].rsplit("-", 2)[:2]
    wanted.append("python" if package == "python" else "%s=%s" % (package, found))
version = "%d.%d" % sys.version_info[:2]
with open(os.path.join(root, "channel.json")) as file:
    channel = json.load(file)
channel.update({"python": version, "pip": "24.0"})
names = {}
for spec in wanted:
    end = min([spec.find(c) for c in "=<>~!" if c in spec] or [len(spec)])
    names[spec[:end]] = spec[end:].lstrip("=~<>!")

for place in document["channels"]:
    if place.endswith("down"):
        fail("CondaHTTPError: HTTP 000 CONNECTION FAILED for url <%s/repodata.json>" % place)
    if place.endswith("terms"):
        fail("CondaToSNonInteractiveError: Terms of Service have not been accepted for: %s" % place)
    if place.endswith("strict"):
        fail("LibMambaUnsatisfiableError: Encountered problems while solving:\n  - package a requires b")
if "hang" in names:
    held = open(os.path.join(root, "held"), "w")
    child = subprocess.Popen(["sleep", "600"], pass_fds=[held.fileno()])
    print("Solving environment: ...", flush=True)
    held.write("on\n")
    held.flush()
    child.wait()

missing = [spec for spec in names if spec not in channel]
missing += ["python=" + names["python"]] if names.get("python") not in (None, "", "3", version) else []
if missing and name == "micromamba":
    lines = ["├─ %s =* * does not exist (perhaps a typo or a missing channel);" % spec for spec in missing]
    fail("error    libmamba Could not solve for environment specs\n    " + "\n    ".join(lines))
if missing:
    lines = "".join("\n  - " + spec for spec in missing)
    fail(
        "PackagesNotFoundError: The following packages are not available from current channels:\n"
        + lines + "\n\nCurrent channels:\n\n  - " + "\n  - ".join(document["channels"])
    )

if args[0] == "create":
    made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix])
    made.returncode and sys.exit(made.returncode)
    write(prefix + "/conda-meta/history", "")
    write(prefix + "/etc/conda/activate.d/data.sh", 'export STAND_IN_DATA="$CONDA_PREFIX/share"\n')
python = "%s/bin/python" % prefix
site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
site = site.decode().strip()
for package in names:
    found = channel[package]
    record_of(prefix, package, "%d.%d.%d" % sys.version_info[:3] if package == "python" else found)
    if package in ("python", "pip"):
        continue
    write("%s/%s.py" % (site, package), "__version__ = %r\nBY = 'conda'\n" % found)
    info = "%s/%s-%s.dist-info" % (site, package, found)
    write(info + "/METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (package, found))
    write(info + "/INSTALLER", "conda\n")
print("Preparing transaction: done\nVerifying transaction: done\nExecuting transaction: done")

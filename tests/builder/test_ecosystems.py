"""The files that Zephyr, Arduino, PlatformIO, ESP-IDF and CMSIS-Pack read, by their own rules and, where a tool of
theirs is installed, by it; and the folder as each of them compiles it."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.builder import compilers
from tests.builder.test_hygiene import _write
from xdeploy.builder.ecosystems import release

FORMS = ["portable", "tuned"]
CATEGORIES = {"Display", "Communication", "Signal Input/Output", "Sensors", "Device Control", "Timing", "Data Storage",
              "Data Processing", "Other"}  # fmt: skip
# scripts/zephyr_module.py: what a module's `build` may say
MODULE_BUILD = {"cmake", "kconfig", "cmake-ext", "kconfig-ext", "depends", "settings"}
SEMVER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "net"
    _write("cortex-m4", request.param, path)
    return path


def tool(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return pytest.skip(f"{name} is not installed")


def _sources(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.glob("src/*.[cS]")}


def _run_cmake(folder: Path, script: str) -> str:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    (folder / "script.cmake").write_text(script)
    done = subprocess.run(["cmake", "-P", "script.cmake"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


# ---------------------------------------------------------------------------------------------------- Zephyr
def test_zephyr_module(folder: Path) -> None:
    yaml = tool("yaml")
    module = yaml.safe_load((folder / "zephyr/module.yml").read_text())
    assert set(module) <= {"name", "build", "tests", "samples", "boards", "blobs", "security"}
    assert set(module["build"]) <= MODULE_BUILD
    assert (folder / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    assert (folder / module["build"]["kconfig"]).is_file()


@pytest.mark.parametrize(("selftest", "core"), [(False, True), (True, True), (True, False)])
def test_zephyr_kconfig(folder: Path, selftest: bool, core: bool, tmp_path: Path) -> None:
    """The symbols as Zephyr's own parser reads them: the tuned form only where the core has the instructions."""
    kconfiglib = tool("kconfiglib")
    (tmp_path / "Kconfig").write_text(
        f'config CPU_CORTEX_M4\n\tbool\n\tdefault {"y" if core else "n"}\nsource "{folder / "zephyr/Kconfig"}"\n'
    )
    (tmp_path / "prj.conf").write_text(f"CONFIG_XD_NET=y\n{'CONFIG_XD_NET_SELFTEST=y' * selftest}\n")
    kconf = kconfiglib.Kconfig(str(tmp_path / "Kconfig"), warn=False)
    kconf.load_config(str(tmp_path / "prj.conf"))
    possible = core or not list(folder.glob("src/*.S"))
    assert (kconf.syms["XD_NET"].str_value == "y") == possible
    assert (kconf.syms["XD_NET_SELFTEST"].str_value == "y") == (possible and selftest)


def test_zephyr_cmake(folder: Path, tmp_path: Path) -> None:
    """With Zephyr's functions replaced by ones that tell what they were called with."""
    stubs = "".join(
        f'function({name})\n  message("{name}|${{ARGN}}")\nendfunction()\n'
        for name in ("zephyr_include_directories", "zephyr_library_named", "zephyr_library_sources",
                     "zephyr_compile_definitions")
    )  # fmt: skip
    include = f'include("{folder / "zephyr/CMakeLists.txt"}")\n'
    assert _run_cmake(tmp_path, stubs + include) == ""
    told = _run_cmake(tmp_path, f"{stubs}set(CONFIG_XD_NET y)\nset(CONFIG_XD_NET_SELFTEST y)\n{include}")
    calls = dict(line.split("|", 1) for line in told.splitlines())
    assert calls["zephyr_library_named"] == "xd_net"
    assert calls["zephyr_compile_definitions"] == "XD_NET_SELFTEST"
    given = {str(Path(p).resolve().relative_to(folder)) for p in calls["zephyr_library_sources"].split(";")}
    assert given == _sources(folder)
    assert Path(calls["zephyr_include_directories"]).resolve() == folder / "include"


# --------------------------------------------------------------------------------------------------- ESP-IDF
def test_esp_idf(folder: Path, tmp_path: Path) -> None:
    """The component names its sources; assembly for another CPU is refused in a sentence."""
    stub = 'function(idf_component_register)\n  message("${ARGN}")\nendfunction()\nset(ESP_PLATFORM 1)\n'
    script = f'{stub}include("{folder / "CMakeLists.txt"}")\n'
    if list(folder.glob("src/*.S")):
        with pytest.raises(AssertionError, match="--form portable"):
            _run_cmake(tmp_path, script)
        return
    words = _run_cmake(tmp_path, script).strip().split(";")
    at = [words.index(w) for w in ("SRCS", "INCLUDE_DIRS", "PRIV_INCLUDE_DIRS")]
    assert set(words[at[0] + 1 : at[1]]) == _sources(folder)
    assert words[at[1] + 1 :] == ["include", "PRIV_INCLUDE_DIRS", "src"]


def test_esp_idf_manifest(folder: Path) -> None:
    manager = tool("idf_component_tools.manager")
    manifest = manager.ManifestManager(str(folder), "xd_net").load()
    assert re.fullmatch(SEMVER, str(manifest.version))


# ------------------------------------------------------------------------------------- Arduino and PlatformIO
def test_arduino_properties(folder: Path) -> None:
    """Library specification 1.5, rev. 2.2: the required keys, and what each may hold."""
    lines = (folder / "library.properties").read_text().splitlines()
    keys = dict(line.split("=", 1) for line in lines)
    assert len(keys) == len(lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert required <= set(keys) <= required | {"depends", "dot_a_linkage", "includes", "precompiled", "ldflags"}
    assert all(value.strip() == value != "" for value in keys.values())
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.\-]{0,62}", keys["name"])
    assert re.search("[A-Za-z]", keys["name"])
    assert not keys["name"].lower().startswith("arduino")
    assert re.fullmatch(SEMVER, keys["version"])
    assert keys["category"] in CATEGORIES
    assert re.match(r"[a-z][a-z0-9+.\-]*:\S+$", keys["url"])  # RFC 3986: a scheme and something after it
    assert (folder / "src" / keys["includes"]).is_file()


def test_compiles_as_arduino_does(folder: Path, tmp_path: Path) -> None:
    """Everything in src/ and nothing else, src/ alone on the include path, for a sketch in C++."""
    words = [w for w in compilers.command("gcc", "cortex-m4") if not w.startswith("-W")]
    (tmp_path / "sketch.cpp").write_text(
        "#include <xd_net.h>\nstatic XD_NET_ALIGNED xd_net_arena a;\nstatic XD_NET_ALIGNED xd_net_input x;\n"
        'static XD_NET_ALIGNED xd_net_output y;\nextern "C" int main() { return xd_net_run(x, y, a); }\n'
    )
    sources = [str(folder / s) for s in sorted(_sources(folder))]
    base = [*words, "-O2", "-I", str(folder / "src"), "-c"]
    subprocess.run([*base, *sources], cwd=tmp_path, check=True)
    subprocess.run([*base, "-std=gnu++11", "sketch.cpp"], cwd=tmp_path, check=True)
    objects = sorted(p.name for p in tmp_path.glob("*.o"))
    subprocess.run([*words, "-nostdlib", "-Wl,-e,main", *objects, "-lc", "-lgcc"], cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip


def test_platformio_manifest(folder: Path) -> None:
    library = json.loads((folder / "library.json").read_text())
    assert re.fullmatch(SEMVER, library["version"])
    assert all((folder / library["build"][key]).is_dir() for key in ("srcDir", "includeDir"))
    assert (folder / "include" / library["headers"]).is_file()
    parser, schema = tool("platformio.package.manifest.parser"), tool("platformio.package.manifest.schema")
    parsed = parser.ManifestParserFactory.new_from_file(str(folder / "library.json")).as_dict()
    assert schema.ManifestSchema().load_manifest(parsed)["name"] == "xd_net"


# ------------------------------------------------------------------------------------------------- CMSIS-Pack
def test_pack_description(folder: Path) -> None:
    """PACK.xsd, the parts that we use: names, version, conditions that exist, files that exist."""
    pack = ElementTree.parse(folder / "xdeploy.xd_net.pdsc").getroot()
    assert pack.findtext("vendor") == "xdeploy"
    assert pack.findtext("name") == "xd_net"
    assert pack.find("url") is not None
    versions = [str(r.get("version")) for r in pack.iter("release")]
    assert [v for v in versions if re.fullmatch(SEMVER, v)] == versions != []
    component = pack.find("components/component")
    assert component is not None
    assert component.get("Cversion") == versions[0]
    defined = {str(c.get("id")) for c in pack.iter("condition")}
    used = {str(e.get("condition")) for e in pack.iter() if e.get("condition")}
    assert used <= defined
    assert bool(defined) == bool(list(folder.glob("src/*.S")))
    files = {str(f.get("name")): str(f.get("category")) for f in pack.iter("file")}
    assert _sources(folder) == {name for name, kind in files.items() if kind.startswith("source")}
    assert all((folder / name).exists() for name in files)


def test_pack_by_its_schema(folder: Path) -> None:
    """The whole of PACK.xsd, where XDEPLOY_PACK_XSD names a copy of it."""
    path = os.environ.get("XDEPLOY_PACK_XSD")
    if not path:
        pytest.skip("XDEPLOY_PACK_XSD does not name a copy of PACK.xsd (Open-CMSIS-Pack-Spec, schema/PACK.xsd)")
    tool("xmlschema").XMLSchema(path).validate(str(folder / "xdeploy.xd_net.pdsc"))


def test_pack_archive_by_the_command_of_the_readme(folder: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    shutil.copytree(folder, tmp_path / "net")
    found = re.search(r"^cmake (-E tar cf (\S+\.pack) .*)$", (folder / "README.md").read_text(), re.M)
    assert found
    subprocess.run(["cmake", *found[1].split()], cwd=tmp_path / "net", check=True)
    assert found[2] == "xdeploy.xd_net.0.1.0.pack"
    with zipfile.ZipFile(tmp_path / "net" / found[2]) as pack:
        names = set(pack.namelist())
        listed = ElementTree.fromstring(pack.read("xdeploy.xd_net.pdsc")).iter("file")
    assert {str(f.get("name")) for f in listed} <= names
    # what the sources include, though the description does not list it
    assert {"src/xd_net_internal.h", "src/xd_net.h"} <= names


@pytest.mark.parametrize(
    ("given", "made"), [("0.1.0", "0.1.0"), ("1.2", "1.2.0"), ("2.0.1rc3", "2.0.1"), ("01.2.3.4", "1.2.3")]
)
def test_release_numbers(given: str, made: str) -> None:
    assert release(given) == made
    assert re.fullmatch(SEMVER, made)


def test_a_version_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a version"):
        release("unknown")

"""Compose files are read as docker compose (2.26, 2.40) reads them, and no content causes a traceback."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from plugin.fwctl.check.compose.files import MAX_FILES, read
from plugin.fwctl.check.compose.model import Notes, Unreadable
from plugin.fwctl.check.compose.tree import scalar
from plugin.fwctl.check.compose.variables import dotenv, expand
from plugin.fwctl.check.run import run
from tests.pure.composing import checked, fetching, labels, project
from tests.pure.strategies import examples

#: The unquoted text in a file, and the label text that compose makes of it.
SCALARS = {
    "8080": "8080", "022": "18", "80.0": "80", "1e6": "1e+06", "1234567.5": "1.2345675e+06", "1.10": "1.1",
    "0x50": "80", "+80": "80", "8_080": "8080", "0o17": "15", "08": "8", ".5": "0.5", "0b11": "3", "-5": "-5",
    "123456.75": "123456.75", "0.00001": "1e-05", "True": "true", "FALSE": "false", "yes": "yes", "22:22": "22:22",
    "2001-01-01": "2001-01-01", "0": "0", "0.0": "0", "9000-9100": "9000-9100", "80, 443": "80, 443", "1e999": "+Inf",
    "80__": "80", "-": "-", ".": ".", "0xg": "0xg",
}  # fmt: skip


@pytest.mark.parametrize(("written", "text"), SCALARS.items(), ids=repr)
def test_a_number_becomes_the_text_that_compose_makes_of_it(written: str, text: str) -> None:
    """`fw.allow: 022` is the label "18": Go's YAML reads an octal number."""
    assert scalar(yaml.ScalarNode("tag:yaml.org,2002:str", written)) == text
    assert scalar(yaml.ScalarNode("tag:yaml.org,2002:str", written, style='"')) == written


@pytest.mark.parametrize("written", ["", "~", "null", "Null", "NULL"])
def test_null_is_the_empty_text(written: str) -> None:
    """A label with the value null is empty, which is a mistake in docker-fw's language."""
    found, _ = project(f"services: {{web: {{labels: {{a: {written}}}}}}}")
    assert labels(found.services["web"]) == {"a": ""}


def test_labels_are_a_map_or_a_list() -> None:
    """Both forms are the same labels; a name without a value is an empty label."""
    one, _ = project('services: {web: {labels: {a: 1, b: "x=y", c: }}}')
    other, _ = project("services: {web: {labels: [a=1, b=x=y, c]}}")
    assert labels(one.services["web"]) == labels(other.services["web"]) == {"a": "1", "b": "x=y", "c": ""}


def test_aliases_and_merge_keys_keep_their_own_lines() -> None:
    """An anchor's values have the anchor's lines; own keys take precedence, and of several maps the first."""
    found, notes = project(
        """\
        x-one: &one
          a: one
          b: one
        x-two: &two {b: two, c: two}
        services:
          web:
            labels:
              c: own
              <<: [*one, *two]
          all: {labels: *two}
        """
    )
    assert labels(found.services["web"]) == {"a": "one", "b": "one", "c": "own"}
    assert labels(found.services["all"]) == {"b": "two", "c": "two"}
    lines = {key: value.place.line for key, value in found.services["web"].map["labels"].map.items()}
    assert lines == {"a": 2, "b": 3, "c": 8}
    assert not notes.mistakes


def test_later_files_win_key_by_key() -> None:
    """Labels, networks and options merge by key, in whichever form each file writes them; ports add up."""
    found, _ = project(
        {
            "a.yml": """\
            services:
              web: {labels: {a: 1, b: 1}, networks: [front], ports: ["80:80"]}
            networks: {front: {driver: macvlan, driver_opts: {x: 1}}}
            """,
            "b.yml": """\
            services:
              web:
                labels: [b=2, c=2]
                networks: {front: {driver_opts: {fw.allow: 1}}, back: {}}
                ports: ["81:81"]
            networks: {front: {driver: fw, driver_opts: {y: 2}}, back: }
            """,
        },
        "a.yml",
        "b.yml",
    )
    web, front = found.services["web"].map, found.networks["front"].map
    assert labels(found.services["web"]) == {"a": "1", "b": "2", "c": "2"}
    assert [port.text for port in web["ports"].items] == ["80:80", "81:81"]
    assert list(web["networks"].map) == ["front", "back"]
    assert web["networks"].map["front"].map["driver_opts"].map["fw.allow"].place.line == 4
    assert (front["driver"].text, list(front["driver_opts"].map)) == ("fw", ["x", "y"])
    assert web["labels"].map["b"].place.file == "b.yml"


def test_reset_takes_away_and_override_replaces() -> None:
    """Compose's !reset and !override, also if there is nothing to remove."""
    found, notes = project(
        {
            "a.yml": "services: {web: {labels: {a: 1, b: 1}, ports: ['80:80'], networks: [x]}}\nnetworks: {x: {}}",
            "b.yml": """\
            services:
              web: {labels: {a: !reset null}, ports: !override ["1:1"], networks: !reset [], container_name: !reset x}
            """,
        },
        "a.yml",
        "b.yml",
    )
    web = found.services["web"].map
    assert labels(found.services["web"]) == {"b": "1"}
    assert [port.text for port in web["ports"].items] == ["1:1"]
    assert "networks" not in web
    assert not notes.mistakes


def test_extends_inherits_the_other_services_keys() -> None:
    """Keys are inherited from the same file and from another, through several steps; the service's own labels take
    precedence."""
    found, notes = project(
        {
            "compose.yml": """\
            services:
              web: {extends: {file: sub/base.yml, service: base}, labels: {b: own}}
              api: {extends: web, labels: [c=api]}
            """,
            "sub/base.yml": """\
            services:
              root: {labels: {a: root, b: root}, label_file: x.labels, ports: ["80:80"]}
              base: {extends: {service: root}}
            """,
            "sub/x.labels": "# a comment\nfromfile=1\na=file\n",
        }
    )
    assert labels(found.services["web"]) == {"fromfile": "1", "a": "root", "b": "own"}
    assert labels(found.services["api"]) == {"fromfile": "1", "a": "root", "b": "own", "c": "api"}
    assert str(found.services["api"].map["labels"].map["fromfile"].place) == "sub/x.labels:2"
    assert not notes.mistakes


def test_extends_with_a_missing_service_or_a_circle_is_a_mistake() -> None:
    """Each is reported at its line, and the rest is read."""
    result = checked(
        "services:\n  a: {extends: b}\n  b: {extends: a}\n  c: {extends: missing}\n  d: {extends: {x: y}}\n"
    )
    assert result.status == 1
    assert 'compose.yml:4: c: extends "missing", which is not a service in compose.yml' in result.mistakes
    assert any(line.startswith("compose.yml:2: a: extends") for line in result.mistakes)
    assert any(line.startswith("compose.yml:5: d: extends must name a service") for line in result.mistakes)


def test_include_is_followed_with_its_own_dotenv() -> None:
    """A list of paths is followed, each file with the .env in its directory; other includes are reported as not
    followed."""
    found, notes = project(
        {
            "compose.yml": "include:\n  - sub/a.yml\n  - {path: b.yml, env_file: x}\n  - https://example.com/c.yml\n"
            "  - {path: [b.yml]}\nservices: {web: {}}",
            "sub/a.yml": "services: {a: {labels: {v: '${IN} ${OUT}'}}}",
            "sub/.env": "IN=in\nOUT=in",
            "b.yml": "include: [compose.yml]\nservices: {b: {}}",
        },
        environ={"OUT": "out"},
    )
    assert sorted(found.services) == ["a", "b", "web"]
    assert labels(found.services["a"]) == {"v": "in out"}
    assert [note.place.line for note in notes.warnings] == [3, 4]
    assert [str(note) for note in notes.mistakes] == ["b.yml:1: compose.yml includes itself"]


#: The text, and its expansion where A is "a", E is empty and U is not set.
VARIABLES = {
    "$A-${A}": "a-a", "$$A $${A}": "$A ${A}", "${U:-d} ${U-d}": "d d", "${E:-d} ${E-d}": "d ", "${A:-d}": "a",
    "${U:-${E:-${A}x}}": "ax", "${A:+p} ${E:+p} ${E+p} ${U+p}": "p  p ", "[$U]": "[]", "${A:?x}${A?x}": "aa",
    "${U:-a:b?c-d}": "a:b?c-d", "no": "no", "": "",
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), VARIABLES.items(), ids=repr)
def test_variables_are_replaced_as_compose_does(text: str, expected: str) -> None:
    """All of compose's forms of variables are replaced, nested ones too."""
    assert expand(text, {"A": "a", "E": ""})[::2] == (expected, "")


@pytest.mark.parametrize("text", ["$", "$ x", "${", "${}", "${1}", "$1", "${A", "${A:b}", "${A b}", "$-", "a$"])
def test_a_dollar_that_is_no_variable_is_a_mistake(text: str) -> None:
    """Compose refuses the file; the message says what to write."""
    assert "write $$ for a dollar" in expand(text, {"A": "a"}).mistake


def test_a_missing_variable_is_reported() -> None:
    """A variable that is not set is a warning and the empty text; a required one is a mistake with the file's own text.
    Both are reported only where the variable matters."""
    result = checked(
        """\
        services:
          web:
            image: "${IMAGE} ${PASSWORD:?set it}"
            labels:
              fw.allow: "80,${UNSET}"
              fw.deny: "${PORT:?which port}"
        """
    )
    assert result.mistakes == ["compose.yml:6: needs the variable PORT, which is not set: which port"]
    assert result.warnings == ["compose.yml:5: variable UNSET is not set; it is empty here"]


def test_the_environment_overrides_dotenv() -> None:
    """`.env` in the first file's directory is read, with quotes, comments, export and variables; the environment takes
    precedence."""
    text = """\
    # comment
    PLAIN=a value # comment
    HASH=a#b
    DOUBLE="x\\n${PLAIN}"
    SINGLE='$PLAIN'
    export EXPORTED=1
    NEXT=${EXPORTED}1
    OVER=file
    COPY
    not a line
    PRICE=a$
    """
    found = {k: v for k, (v, _) in dotenv(text, {"OVER": "env", "COPY": "copied"}).items()}
    assert found == {
        "PLAIN": "a value",
        "HASH": "a#b",
        "DOUBLE": "x\na value",
        "SINGLE": "$PLAIN",
        "EXPORTED": "1",
        "NEXT": "11",
        "OVER": "file",
        "COPY": "copied",
        "PRICE": "a$",
    }
    stack, _ = project(
        {"x/compose.yml": "services: {web: {labels: {a: '$OVER $P'}}}", "x/.env": "OVER=file\nP=p"},
        environ={"OVER": "env"},
    )
    assert labels(stack.services["web"]) == {"a": "env p"}


@pytest.mark.parametrize(
    ("files", "environ", "name"),
    [
        ({"My Shop/compose.yml": "services: {}"}, {}, "myshop"),
        ({"x/compose.yml": "name: named\nservices: {}"}, {}, "named"),
        ({"x/compose.yml": "name: n-$N\nservices: {}"}, {"N": "1"}, "n-1"),
        ({"x/compose.yml": "name: named\nservices: {}"}, {"COMPOSE_PROJECT_NAME": "env"}, "env"),
        ({"x/compose.yml": "name: named\nservices: {}", "x/.env": "COMPOSE_PROJECT_NAME=dot"}, {}, "dot"),
    ],
)
def test_the_project_has_the_name_that_compose_gives_it(
    files: dict[str, str | bytes], environ: dict[str, str], name: str
) -> None:
    """The name comes from the environment, the file's name:, or the directory."""
    assert project(files, environ=environ)[0].name == name


#: Text that is not YAML or no compose file, and the line of the mistake.
UNREADABLE: dict[str, tuple[str | bytes, str]] = {
    "tab": ("services:\n\tweb: {}", "compose.yml:2: is not YAML: "),
    "open": ("services:\n  web: [\n", "compose.yml:3: is not YAML: "),
    "colon": ("services:\n  web: {}\n  a b\n  c: d", "compose.yml:4: is not YAML: "),
    "alias": ("services:\n  web: *missing", "compose.yml:2: is not YAML: "),
    "nul": (b"services:\n\0", "compose.yml:2: is not YAML: "),
    "latin-1": ("services:\n  é: {}".encode("latin-1"), "compose.yml:2: is not UTF-8 text"),
    "escape": ('services: {w: "\\UFFFFFFFF"}', "compose.yml: is not YAML: "),
    "deep": ("[" * 1_000, "compose.yml: is nested too deeply"),
    "long": (b"#" * (1 << 21), "compose.yml: is longer than"),
}


@pytest.mark.parametrize(("text", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_text_that_is_not_yaml_is_reported_with_its_line(text: str | bytes, message: str) -> None:
    """The exit status is 2, and the line is the one at fault."""
    result = checked({"compose.yml": text})
    assert result.status == 2
    assert f"\n{message}" in result.text
    assert result.data["services"] == []


def test_a_missing_file_is_reported_where_it_is_named() -> None:
    """A missing file of the command line is reported with its name, one of `extends` and `include` with the line that
    names it."""
    assert checked({}, "none.yml").text == "mistakes:\nnone.yml: cannot be read: No such file or directory\n"
    result = checked("services:\n  web:\n    extends: {file: gone.yml, service: x}\n")
    assert (result.status, "compose.yml:3: gone.yml cannot be read" in result.text) == (2, True)
    assert checked("include:\n  - gone.yml\n").status == 2


def test_real_files_are_read(tmp_path: Path) -> None:
    """Files are read from the disk if there is no `fetch`; a directory is no file."""
    path = tmp_path / "compose.yml"
    path.write_text("services: {web: {labels: {a: b}}}")
    assert labels(read([str(path)], {}, Notes()).services["web"]) == {"a": "b"}
    with pytest.raises(Unreadable, match="directory"):
        read([str(path.parent)], {}, Notes())


_LAUGHS = "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 15))
_LISTS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 15))
BOMBS = {
    "merge keys": f"a0: &a0 {{a: b}}\n{_LAUGHS}\nservices: {{w: {{labels: *a14}}}}",
    "lists": f"a0: &a0 [x]\n{_LISTS}\nservices: {{w: {{ports: *a14}}}}",
    "itself": "services: &s {w: {labels: *s}}",
    "merged into itself": "services: {w: &s {<<: *s}}",
    "extends": "services:\n  w0: {labels: {"
    + ",".join(f"a{i}: b" for i in range(3000))
    + "}}\n"
    + "".join(f"  w{i}: {{extends: w0}}\n" for i in range(1, 100)),
    "rules": "x: &l {fw.allow: '"
    + ",".join(map(str, range(9000, 9256)))
    + "'}\nservices:\n"
    + "".join(f"  w{i}: {{labels: *l}}\n" for i in range(800)),
    "includes": "include: [compose.yml, compose.yml]",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_aliases_of_aliases_cost_little(text: str) -> None:
    """A few lines that expand to a billion values end with a message, soon."""
    start = time.process_time()
    assert run(["compose.yml"], {}, True, io.StringIO(), fetch=fetching({"compose.yml": text})) != 0
    assert time.process_time() - start < 20


def test_files_that_include_one_another_without_end_are_stopped() -> None:
    """The bound holds for deep chains and for repeated includes."""
    chain = {f"{i}.yml": f"include: [{i + 1}.yml]" for i in range(MAX_FILES + 9)}
    twice = {f"{i}.yml": f"include: [{i + 1}.yml, {i + 1}.yml]" for i in range(40)} | {"40.yml": "services: {}"}
    for files in (chain, twice):
        result = checked(files, "0.yml")
        assert result.status == 2
        assert f"there are more than {MAX_FILES}" in result.text


#: Text that resembles a compose file, to be broken in every way.
_WORDS = st.sampled_from(
    [
        "services",
        "networks",
        "web",
        "labels",
        "fw.allow",
        "fw.network.front.deny",
        "ports",
        "driver",
        "fw:latest",
        "80",
        "8080:80",
        "extends",
        "include",
        "external",
        "!reset",
        "!override",
        "<<",
        "*a",
        "&a",
        "null",
        "~",
        "|",
        ">",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "\n",
        "\n  ",
        "\n    ",
        ", ",
        "'",
        '"',
        "${A",
        "}",
        "$",
        "name",
        "deploy",
        "build",
        "network_mode",
        "service:web",
        "---",
        "%YAML 1.1",
        "\t",
        "#",
        "?",
        "\\U",
        "label_file",
        "driver_opts",
    ]
)
_VALUES: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["web", "front", "80:80", "fw", "service:web", "8080 from service:web", "${A}", "true"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "services",
                    "networks",
                    "web",
                    "labels",
                    "fw.allow",
                    "fw.egress",
                    "ports",
                    "driver",
                    "extends",
                    "driver_opts",
                    "deploy",
                    "build",
                    "external",
                    "name",
                    "include",
                    "network_mode",
                    "target",
                    "container_name",
                    "annotations",
                    "internal",
                    "file",
                    "service",
                    "label_file",
                    "front",
                    "path",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def _no_traceback(text: str) -> None:
    result = checked({"compose.yml": text.encode("utf-8", "surrogatepass")})
    assert result.status in (0, 1, 2)
    assert (result.status == 0) == (not result.mistakes)
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 1
    for note in (*result.data["mistakes"], *result.data["warnings"]):
        assert 0 <= note["line"] <= lines
    assert all(c.isprintable() or c == "\n" for c in result.text)


@given(st.text() | st.lists(_WORDS, max_size=40).map("".join))
@examples(300)
def test_arbitrary_text_gives_no_traceback(text: str) -> None:
    """Notes are printable and refer to existing lines, for any file content."""
    _no_traceback(text)


@given(st.dictionaries(st.sampled_from(["services", "networks", "include", "name"]), _VALUES, max_size=4))
@examples(200)
def test_arbitrary_yaml_gives_no_traceback(document: dict[str, object]) -> None:
    """Any values in the place of services, labels and networks cause no traceback."""
    _no_traceback(yaml.safe_dump(document))


@given(
    st.dictionaries(
        st.sampled_from(["web", "api"]),
        st.dictionaries(
            st.sampled_from(
                ["labels", "networks", "ports", "network_mode", "extends", "deploy", "build", "label_file"]
            ),
            _VALUES,
            max_size=4,
        ),
        min_size=1,
    )
)
@examples(100)
def test_arbitrary_services_give_no_traceback(services: dict[str, object]) -> None:
    """Any values inside services cause no traceback."""
    _no_traceback(yaml.safe_dump({"services": services, "networks": {"front": {}}}))


@given(st.text(st.sampled_from("$${}:-?+AE_ x"), max_size=30), st.text(st.sampled_from("A='\"\n#$ {}\\"), max_size=30))
@examples(500)
def test_arbitrary_variables_give_no_traceback(text: str, env: str) -> None:
    """Text with any dollars, and any `.env`, cause no traceback."""
    found = expand(text, {"A": "a", "E": ""})
    assert found.text == "" or not found.mistake
    assert all(1 <= line <= env.count("\n") + 1 for _, line in dotenv(env, {}).values())

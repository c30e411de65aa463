"""`fwctl check` reports the ports that a compose file opens, and its mistakes with file and line, before anything is
started."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from plugin.fwctl.check.run import run
from plugin.labels.keys import KEYS
from plugin.model import Defaults, PolicySpec, Rule
from tests.pure.composing import checked, fetching
from tests.pure.messages import PORT

ROOT = Path(__file__).resolve().parents[4]
BASE = ["22/tcp", "80/tcp", "443/tcp"]


def test_a_service_is_shown_with_the_ports_it_accepts() -> None:
    """The form for people: networks, ports with the line that opens them, egress, and published ports."""
    result = checked(
        """\
        services:
          web:
            networks: [front]
            ports: ["8080:8080", "5432:5432", "9000:9000", "127.0.0.1:6379:6379", "[::]:53:53/udp"]
            labels:
              fw.allow: |
                8080
                9000 from service:api
              fw.egress: 443, 53/udp to 2001:db8::53
              fw.rate: 22 5/minute
              fw.log: drop
          api:
        networks: {front: {}}
        """.replace("api:", "api: {}")
    )
    assert (result.status, result.mistakes, result.warnings) == (0, [], [])
    assert result.text == (
        "compose.yml: 2 services\n"
        "web  on front (Docker network)\n"
        "  accepts: 22/tcp, 80/tcp, 443/tcp (base), 8080/tcp, 9000/tcp from service:api (label fw.allow, line 6)\n"
        "  egress: 443/tcp, 53/udp to 2001:db8::53 (label fw.egress, line 9)\n"
        "  rate: 22/tcp 5/minute burst 5\n"
        "  log: drop\n"
        "  published 8080->8080/tcp: open to all\n"
        '  published 5432->5432/tcp: closed to the outside (to open it: label fw.allow: "5432")\n'
        "  published 9000->9000/tcp: open to service:api\n"
        "  published 127.0.0.1:6379->6379/tcp: reachable from the host only\n"
        '  published [::]:53->53/udp: closed to the outside (to open it: label fw.allow: "53/udp")\n'
        "api  on default (Docker network)\n"
        "  accepts: 22/tcp, 80/tcp, 443/tcp (base)\n"
        "  egress: everything\n"
    )


def test_a_mistake_is_printed_as_file_line_and_text() -> None:
    """FILE:LINE: SERVICE: and the same text with which docker-fw would refuse the start; the exit status is 1."""
    result = checked('services:\n  web:\n    ports: ["80:80"]\n    labels:\n      x: y\n      fw.allow: 808O\n')
    assert result.status == 1
    assert result.text.endswith(f'\nmistakes:\ncompose.yml:6: web: label fw.allow="808O": "808O" {PORT}\n')
    assert result.data["mistakes"] == [
        {"file": "compose.yml", "line": 6, "service": "web", "text": f'label fw.allow="808O": "808O" {PORT}'}
    ]


def test_every_mistake_is_reported_at_once() -> None:
    """Mistakes of every service, every network and every attachment are reported, each at the line of its own key."""
    result = checked(
        """\
        services:
          web:
            labels:
              fw.allow: 808O
              fw.deny: x
              fw.alow: 1
              fw.network.front.allow: 0
              fw.network.font.allow: 1
            networks:
              front: {driver_opts: {fw.allow: y}}
          api: {labels: ["fw.policy=opn"]}
        networks:
          front:
            driver: fw:latest
            driver_opts:
              fw.rate: much
        """
    )
    assert [line.partition('="')[0].partition(': "')[0] for line in result.mistakes] == [
        "compose.yml:4: web: label fw.allow",
        "compose.yml:5: web: label fw.deny",
        "compose.yml:6: web: label fw.alow",
        "compose.yml:7: web: label fw.network.front.allow",
        "compose.yml:8: web: label fw.network.font.allow",
        "compose.yml:10: web: driver option fw.allow",
        "compose.yml:11: api: label fw.policy",
        "compose.yml:16: network front: network option fw.rate",
    ]
    assert "did you mean fw.allow?" in result.mistakes[2]
    assert result.mistakes[4].endswith('"font" is not a network of web (front); did you mean front?')


def test_a_mistake_refuses_the_start_or_closes_by_the_networks_driver() -> None:
    """The output shows the actual result: on a Docker network the base remains, or ICMP only, depending on the
    mistake."""
    result = checked(
        """\
        services:
          own: {networks: [front], labels: {fw.allow: x}}
          base: {labels: {fw.allow: x}}
          icmp: {labels: {fw.deny: x}}
        networks: {front: {driver: "fw:latest"}}
        """
    )
    assert result.on("own", "front")["refused"]
    assert "own  on front (docker-fw network)\n  does not start" in result.text
    assert result.accepts("base") == BASE
    assert result.accepts("icmp") == []
    assert "  accepts: ICMP only (closed by a mistake)\n" in result.text


@pytest.mark.parametrize(
    ("driver", "kind"),
    [
        ("", "guarded"),
        ("bridge", "guarded"),
        ("fw", "own"),
        ("fw:latest", "own"),
        ("example/fw:1", "own"),
        ("macvlan", "apart"),
        ("ipvlan", "apart"),
        ("overlay", "apart"),
        ("none", "apart"),
        ("host", "apart"),
        ("weave", "apart"),
    ],
)
def test_the_driver_decides_whether_a_network_is_protected(driver: str, kind: str) -> None:
    """The output says whether a network is protected, and that labels have no effect on an unprotected one."""
    result = checked(
        f"services: {{web: {{networks: [n], ports: ['8080:8080'], labels: {{fw.allow: 8080}}}}}}\n"
        f"networks: {{n: {{driver: '{driver}'}}}}"
    )
    assert result.on("web", "n")["kind"] == kind
    assert result.status == 0
    why = result.on("web", "n")["why"]
    alone = kind == "apart" and driver != "overlay"
    assert result.warnings == [f"compose.yml:1: web: label fw.allow has no effect: n is {why}"] * alone


def test_an_overlay_publishes_over_dockers_own_bridge() -> None:
    """A port that a container on an overlay publishes is forwarded by docker_gwbridge, and is filtered there."""
    result = checked(
        "services: {web: {networks: [n], ports: ['8080:8080'], labels: {fw.allow: 8080}}}\n"
        "networks: {n: {driver: overlay}}"
    )
    assert result.on("web", "docker_gwbridge")["published"][0]["open_to"] == "everybody"


def test_network_mode_decides_whose_labels_apply() -> None:
    """host and none are not protected; with service:X the labels of X apply, and the service's own have no effect."""
    result = checked(
        """\
        services:
          on-host: {network_mode: host, labels: {fw.allow: 1}}
          alone: {network_mode: none}
          docker0: {network_mode: bridge, labels: {fw.network.bridge.deny: 22}}
          side: {network_mode: "service:docker0", labels: {fw.allow: 1}}
          other: {network_mode: "container:x"}
          lost: {network_mode: "service:docker1"}
          both: {network_mode: host, networks: [default]}
        """
    )
    assert result.accepts("docker0", "bridge") == ["80/tcp", "443/tcp"]
    assert "side  shares the network of service docker0, whose labels apply\n" in result.text
    assert result.warnings == [
        "compose.yml:2: on-host: label fw.allow has no effect: host is the host's network: not protected",
        "compose.yml:5: side: label fw.allow has no effect: side shares the network of service docker0, whose labels "
        "apply; move it there",
    ]
    assert result.mistakes == [
        'compose.yml:7: lost: network_mode: "docker1" is not another service in these files; did you mean docker0?',
        "compose.yml:8: both: networks and network_mode cannot be combined",
    ]


def test_labels_for_one_network_name_it_by_key_or_in_full() -> None:
    """Labels for one network apply there only; networks with different results are shown separately, equal ones
    together."""
    result = checked(
        """\
        name: shop
        services:
          web:
            networks: [a, b, c]
            ports: ["1:1", "2:2"]
            labels: {fw.network.a.allow: 1, fw.network.shop_b.allow: 2}
        networks: {a: {}, b: {}, c: {name: elsewhere}}
        """
    )
    assert result.accepts("web", "a") == ["1/tcp", *BASE]
    assert result.accepts("web", "b") == ["2/tcp", *BASE]
    assert result.accepts("web", "c") == BASE
    assert result.on("web", "c")["name"] == "elsewhere"
    assert result.status == 0
    alike = checked("services: {web: {networks: [a, b]}}\nnetworks: {a: {}, b: {}}")
    assert "web  on a, b (Docker network)\n" in alike.text


def test_network_and_attachment_options_add_up_with_labels() -> None:
    """Options of networks and attachments apply together with labels, on docker-fw networks and on Docker networks."""
    result = checked(
        """\
        services:
          web:
            labels: {fw.allow: 1}
            ports: ["1:1"]
            networks: {own: {driver_opts: {fw.allow: 2}}, bridge: {driver_opts: {fw.allow: 3}}}
        networks: {own: {driver: fw, driver_opts: {fw.allow: 4}}, bridge: {driver_opts: {fw.allow: 5}}}
        """
    )
    assert result.accepts("web", "own") == ["1/tcp", "2/tcp", "4/tcp", *BASE]
    assert result.accepts("web", "bridge") == ["1/tcp", "3/tcp", "5/tcp", *BASE]
    assert result.warnings == []


def test_labels_in_places_without_effect_are_reported() -> None:
    """Swarm's labels are a mistake; those of images and networks, annotations and look-alikes are warnings."""
    result = checked(
        """\
        services:
          web:
            build: {context: ., labels: {fw.allow: 1}}
            annotations: {fw.allow: 1}
            deploy: {labels: [fw.allow=1, other=2]}
            fw.allow: 1
            labels:
              fw-allow: 1
              FW_NETWORK_FRONT_ALLOW: 1
              docker-fw.egress: none
              fwd.port: 1
              firewall: 1
        networks:
          default: {labels: {fw.allow: 1}, driver_opts: {x: y}, fw.deny: 22}
        """
    )
    assert result.mistakes == [
        "compose.yml:5: web: deploy.labels fw.allow has no effect: it is a label of the swarm service, not of its "
        "containers; move it to the service's labels:",
        "compose.yml:6: web: fw.allow is a label; move it under labels:",
        "compose.yml:14: network default: fw.deny is an option; move it under driver_opts:",
    ]
    likely = [line.rpartition("did you mean ")[2] for line in result.warnings[2:5]]
    assert likely == ["fw.allow?", "fw.network.NAME.allow?", "fw.egress?"]
    assert [int(line.split(":")[1]) for line in result.warnings] == [3, 4, 8, 9, 10, 14]


@pytest.mark.parametrize("key", KEYS)
def test_a_look_alike_of_every_key_is_known(key: str) -> None:
    """Written with dashes, underscores, in capitals, and without a separator."""
    bare = key.removeprefix("fw.")
    for wrong in (f"fw-{bare}", f"fw_{bare}", f"FW_{bare.upper()}", f"fw{bare}", f" {key}"):
        result = checked(f"services: {{web: {{labels: {{'{wrong}': x}}}}}}")
        assert result.warnings == [f"compose.yml:1: web: label {wrong} has no effect; did you mean {key}?"]


def test_a_number_that_yaml_reads_differently_is_reported() -> None:
    """Compose reads 022 as 18: the warning shows the label that applies, and that quotes help."""
    result = checked("services: {web: {ports: ['18:18'], labels: {fw.allow: 022}}}")
    assert result.accepts("web") == ["18/tcp", *BASE]
    assert result.warnings == ["compose.yml:1: web: label fw.allow: YAML reads 022 as the number 18; put it in quotes"]


def test_a_peer_that_matches_no_service_is_reported() -> None:
    """A service that the files lack; a container with another name; one without an address of its own."""
    result = checked(
        """\
        name: p
        services:
          web:
            ports: ["99:99"]
            container_name: web
            labels:
              fw.allow: 99 from service:ap container:api container:other service:host service:side
          api: {networks: [back]}
          host: {network_mode: host}
          side: {network_mode: "service:api"}
        networks: {back: {}}
        """
    )
    start = "compose.yml:7: web: label fw.allow: "
    unmatched = "matches no container: it has no address of its own on a network that docker-fw protects"
    assert result.warnings == [
        f"{start}container:api matches no container: the container of that service is named p-api-1; write service:api",
        f"{start}service:ap is not a service in these files, so it matches no container; did you mean api?",
        f"{start}service:host {unmatched}",
        f"{start}service:side {unmatched}",
    ]


def test_an_unknown_container_is_reported_only_if_all_are_named() -> None:
    """A container that the files lack may belong to another stack: a typo is likely only if every service has a
    container_name."""
    known = "services: {web: {container_name: w, ports: ['9:9'], labels: {fw.allow: 9 from container:x}}"
    (warning,) = checked(known + "}").warnings
    assert warning.endswith("container:x is not a container_name in these files, so it matches no container here")
    assert checked(known + ", api: {}}").warnings == []


def test_a_rule_without_effect_is_reported() -> None:
    """Rules for ports that are open anyway, closed anyway, or unreachable; but only if that holds on each of the
    service's networks."""
    result = checked(
        """\
        name: p
        services:
          web:
            networks: [front, inside]
            ports: ["1-6:1-6"]
            labels:
              fw.allow: "1 from service:api, 2 from host, 3 from network:front, 4 from service:far, 22 from service:api,
                7, 5"
              fw.deny: "9, 5"
              fw.rate: "8 1/second, 1 1/second"
              fw.egress: "443 to service:api, 443 to service:far, 1 to host"
          api: {networks: [front]}
          far: {networks: [back]}
        networks: {front: {}, back: {}, inside: {internal: true}}
        """
    )
    free = "containers on one network talk freely"
    assert [line.partition("label ")[2].partition(", and a container")[0] for line in result.warnings] == [
        f"fw.allow: 1/tcp from service:api has no effect: service:api is on front too, and {free}",
        "fw.allow: 2/tcp from host has no effect: the host itself always has access",
        f"fw.allow: 3/tcp from network:front has no effect: network:front is on front too, and {free}",
        "fw.allow: 7/tcp has no effect: it is not published",
        "fw.deny: 5/tcp has no effect: fw.deny only removes ports from the base, and fw.allow opens this one",
        "fw.deny: 9/tcp has no effect: fw.deny only removes ports from the base, and this one is closed anyway",
        "fw.rate: 8/tcp has no effect: the port is closed",
        f"fw.egress: 443/tcp to service:api has no effect: service:api is on front too, and {free}",
    ]
    assert result.status == 0


def test_every_rule_has_an_effect_between_isolated_containers() -> None:
    """Rules have an effect on networks with enable_icc=false, and on networks whose containers are reached through
    their own addresses."""
    result = checked(
        """\
        services:
          web: {networks: [isolated], ports: ["1:1"], labels: {fw.allow: 1 from service:api}}
          api: {networks: [isolated, routed], labels: {fw.network.routed.allow: 2}}
          own: {networks: [own], labels: {fw.allow: 3}}
          out: {networks: [out], labels: {fw.allow: 3}}
        networks:
          isolated: {driver_opts: {com.docker.network.bridge.enable_icc: "false"}}
          routed: {driver_opts: {com.docker.network.bridge.gateway_mode_ipv6: routed}}
          own: {driver: fw}
          out: {external: true}
        """
    )
    assert (result.mistakes, result.warnings) == ([], [])


def test_published_ports_long_short_and_in_ranges() -> None:
    """Every form that compose accepts; a range is shown in the parts that are open to the same peers."""
    result = checked(
        """\
        services:
          web:
            ports:
              - 80
              - "443-445:443-445"
              - {target: 81, published: "8081", host_ip: 127.0.0.1}
              - {target: 53, protocol: udp}
              - "127.0.0.1::22"
              - "9000-9010:22/tcp"
              - "80"
              - "0:82"
        """
    )
    published = result.on("web")["published"]
    assert [(p["host_ip"], p["host_port"], p["container_port"], p["open_to"]) for p in published] == [
        ("", "", "80/tcp", "everybody"),
        ("", "443-445", "443/tcp", "everybody"),
        ("", "443-445", "444-445/tcp", "nobody"),
        ("127.0.0.1", "8081", "81/tcp", "host"),
        ("", "", "53/udp", "nobody"),
        ("127.0.0.1", "", "22/tcp", "host"),
        ("", "9000-9010", "22/tcp", "everybody"),
        ("", "", "82/tcp", "nobody"),
    ]
    assert "  published (any)->80/tcp: open to all\n" in result.text
    assert "  published 443-445->443-445/tcp: 444-445/tcp closed to the outside" in result.text


@pytest.mark.parametrize(
    ("port", "what"),
    [
        ('"a:b"', '"a:b" is not a port'),
        ('"80/icmp"', '"icmp" is not a protocol'),
        ('"1-2:1-3"', "not of equal length"),
        ('"x:1:1"', '"x" is not an address of the host'),
        ('"70000"', "is not a port"),
        ("{}", "is not a port"),
        ("{target: []}", "is not a port"),
        ("~", "is not a port"),
        ('"9-8"', "is not a port"),
    ],
)
def test_a_port_that_compose_would_refuse_is_a_mistake(port: str, what: str) -> None:
    """The mistake has its line, and says what would be right."""
    result = checked(f"services:\n  web:\n    ports:\n      - {port}\n")
    assert len(result.mistakes) == 1
    assert result.mistakes[0].startswith("compose.yml:4: web: ports: ")
    assert what in result.mistakes[0]


def test_settings_of_the_host_apply() -> None:
    """FW_ALLOW adds to every container, and with FW_PUBLISHED=allow a published port is open by itself."""
    file = "services: {web: {ports: ['8080:8080', '9-10:9-10']}}"
    assert checked(file).on("web")["published"][0]["open_to"] == "nobody"
    result = checked(file, defaults=Defaults(PolicySpec(allow=(Rule("tcp", 7, 7, origin="FW_ALLOW"),)), published=True))
    assert result.accepts("web") == ["7/tcp", *BASE, "9-10/tcp", "8080/tcp"]
    assert {port["open_to"] for port in result.on("web")["published"]} == {"everybody"}
    assert "7/tcp (FW_ALLOW)" in result.text


@pytest.mark.parametrize(("driver", "left"), [("bridge", ["22/tcp"]), ("fw", BASE)])
def test_a_port_published_on_loopback_is_not_in_the_base(driver: str, left: list[str]) -> None:
    """A port that is published on loopback only is left out; one that is also published elsewhere stays."""
    ports = "['127.0.0.1:8080:80', '127.0.0.1:8443:443', '127.0.0.1:2222:22', '22:22']"
    result = checked(f"services: {{web: {{networks: [n], ports: {ports}}}}}\nnetworks: {{n: {{driver: {driver}}}}}")
    assert result.accepts("web", "n") == left


def test_an_internal_network_is_unreachable_from_outside() -> None:
    """No traffic from outside enters, whatever a label allows; the warning says what to do."""
    result = checked(
        "services: {web: {networks: [n], ports: ['8080:8080'], labels: {fw.allow: 8080}}}\n"
        "networks: {n: {internal: true}}"
    )
    assert result.accepts("web", "n") == []
    assert "web  on n (Docker network; internal: no access from outside)\n  accepts: ICMP only\n" in result.text
    assert "published 8080->8080/tcp: closed (the network is internal)" in result.text
    assert result.warnings[0].endswith("the network is internal; connect the service to another network too")


#: Text with another form than compose expects, the line, and the message.
MALFORMED = {
    "[a]": (1, "a compose file must be a map"),
    "services: [a]": (1, "services must be a map, like web: {image: nginx}, not a list"),
    "services: text": (1, 'services must be a map, like web: {image: nginx}, not "text"'),
    "services:\n  web: text": (2, 'web: a service must be a map, like {image: nginx}, not "text"'),
    "services:\n  web:": (2, "web: a service must be a map, like {image: nginx}, not nothing"),
    "services: {web: {labels: text}}": (1, 'web: labels must be a map (fw.allow: "8080") or a list (- fw.allow=8080)'),
    "services: {web: {labels: {fw.allow: [80]}}}": (1, 'labels: fw.allow must be text, like "8080, 53/udp", not'),
    "services: {web: {labels: [{a: b}]}}": (1, "web: labels: each must be text, not a map"),
    "services: {web: {networks: 3}}": (1, "web: networks must be a list of networks (- front) or a map (front: {})"),
    "services: {web: {networks: {default: 3}}}": (1, "web: networks.default must be a map"),
    "services: {web: {networks: {default: {driver_opts: [a]}}}}": (1, "web: driver_opts must be a map"),
    "services: {web: {ports: 80}}": (1, "web: ports must be a list"),
    "services: {web: {network_mode: []}}": (1, "web: network_mode must be text, not a list"),
    "services: {web: {deploy: 3}}": (1, "web: deploy must be a map"),
    "services: {web: {}}\nnetworks: [a]": (2, "networks must be a map"),
    "services: {web: {}}\nnetworks: {a: []}": (2, "network a must be a map"),
    "services: {web: {}}\nnetworks: {a: {driver: []}}": (2, "driver must be text"),
    "services: {web: {}}\ninclude: x.yml": (2, "include must be a list of files"),
    "services: {web: {}}\nname: [x]": (2, "name must be text"),
    "services:\n  web: {}\n  web: {}": (3, '"web" is already defined in line 2'),
    "services:\n  web: {<<: 3}": (2, "<< merges maps"),
    "services:\n  ? [a]\n  : {}\n  web: {}": (2, "a key must be text"),
    "services:\n  web: {networks: [x]}": (2, 'web: network "x" is not defined in these files'),
    "": (1, "it has no services"),
    "web: {image: x}": (1, "it has no services; define them under services:"),
}


@pytest.mark.parametrize(("text", "expected"), MALFORMED.items(), ids=repr)
def test_a_value_of_the_wrong_form_is_reported_with_advice(text: str, expected: tuple[int, str]) -> None:
    """One mistake, at its line; the rest of the file is read."""
    result = checked(text)
    assert result.status == 1
    assert len(result.mistakes) == 1, result.mistakes
    assert result.mistakes[0].startswith(f"compose.yml:{expected[0]}: ")
    assert expected[1] in result.mistakes[0]


def test_the_same_label_twice_in_a_list_is_reported() -> None:
    """A label that is repeated in a list is a warning, because compose silently takes the later one."""
    result = checked("services:\n  web:\n    ports: ['2:2']\n    labels:\n    - fw.allow=1\n    - fw.allow=2\n")
    assert result.accepts("web") == ["2/tcp", *BASE]
    assert result.warnings == ["compose.yml:6: web: fw.allow is already set in line 5; only this one counts"]


def test_every_message_is_one_line_for_any_label() -> None:
    """Line breaks and terminal escape sequences are escaped; an ASCII stream gets ASCII."""
    result = checked('services:\n  web: {labels: {fw.allow: "1\\n\\e[31mé\\ud800"}}\n')
    (line,) = [line for line in result.text.splitlines() if line.startswith("compose.yml:2:")]
    assert '="1\\n\\x1b[31mé\\ud800"' in line

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert run(["c.yml"], {}, False, stream, fetch=fetching({"c.yml": "services: {web: {labels: {fw.allow: é}}}"})) == 1
    stream.flush()
    assert b'="\\xe9"' in stream.buffer.getvalue()


def test_no_file_is_wrong_usage() -> None:
    """The exit status is 2 without a file, and the message shows the usage."""
    stream = io.StringIO()
    assert run([], {}, False, stream) == 2
    assert "fwctl check compose.yml" in stream.getvalue()


@pytest.mark.parametrize("path", sorted((ROOT / "compose-examples").glob("*.yml")), ids=lambda p: p.name)
def test_the_examples_have_no_mistakes(path: Path) -> None:
    """Every file of compose-examples checks clean: no mistake, no warning."""
    stream = io.StringIO()
    assert run([str(path)], {}, True, stream) == 0
    result = json.loads(stream.getvalue())
    assert (result["mistakes"], result["warnings"]) == ([], [])
    assert result["services"]


def test_a_large_stack_is_checked_in_a_moment() -> None:
    """A hundred services on three networks with ten rules each."""
    rules = ", ".join(f"{9000 + n} from service:w{n}" for n in range(10))
    services = "\n".join(
        f"  w{n}: {{networks: [a, b, c], ports: ['80:80'], labels: {{fw.allow: '{rules}'}}}}" for n in range(100)
    )
    start_time = time.process_time()
    assert checked(f"services:\n{services}\nnetworks: {{a: {{}}, b: {{}}, c: {{}}}}").status == 0
    assert time.process_time() - start_time < 10

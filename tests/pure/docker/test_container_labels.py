"""A container as Docker lists it → its policy on each network; an image's labels open nothing."""

from __future__ import annotations

from typing import Any

import pytest

from plugin.docker import container_labels
from plugin.docker.container_labels import ContainerLabels
from plugin.labels.keys import EVERYTHING
from plugin.model import Container, PolicySpec, Rate, Rule

SSH, HTTP, HTTPS, MORE = (Rule("tcp", port, port) for port in (22, 80, 443, 8080))
COMPOSE = {
    "com.docker.compose.project": "shop",
    "com.docker.compose.service": "web",
    "com.docker.compose.container-number": "1",
}


def listed(*networks: str, **labels: str) -> dict[str, Any]:
    """An entry as `GET /containers/json` returns it; dots in labels are written as double underscores."""
    return {
        "Id": "c" * 64,
        "Names": ["/web"],
        "Labels": {k.replace("__", "."): v for k, v in labels.items()} or None,
        "NetworkSettings": {"Networks": {name: {} for name in networks or ("bridge",)}},
    }


def compose(*networks: str, **labels: str) -> dict[str, Any]:
    raw = listed(*networks, **labels)
    return {**raw, "Labels": {**COMPOSE, **(raw["Labels"] or {})}}


def container(
    raw: dict[str, Any],
    network: str = "bridge",
    *,
    image: dict[str, str] | None = None,
    key: str = "",
    unknown: str = "",
) -> Container:
    return container_labels.on_network(container_labels.read(raw, image, unknown=unknown), network, key)


def test_an_image_sets_no_project_and_no_service() -> None:
    """An image's labels set no project and no service: the container would match other containers' rules. Only compose
    labels that the container has and the image lacks count; an image that was removed cannot be inspected, so there is
    no name."""
    image = {"com.docker.compose.project": "shop", "com.docker.compose.service": "api"}
    raw = {**listed("bridge"), "Labels": image}
    assert (container(raw, image=image).project, container(raw, image=image).service) == ("", "")
    assert (container(raw).project, container(raw).service) == ("", "")
    built = {**raw, "Labels": {**image, "com.docker.compose.container-number": "1"}}
    assert container(built, image=image).service == "api"
    assert container(built, image={**image, "com.docker.compose.container-number": "1"}).service == ""
    assert container(built, unknown="it is gone; pull it again").service == ""


# --- identity -----------------------------------------------------------------------------------------------------


def test_a_plain_container() -> None:
    """The ID and the name of a container without labels; missing fields are empty."""
    assert container(listed()) == Container("c" * 64, "web", network="bridge")
    assert container_labels.read({"Id": "d" * 64}, None) == ContainerLabels("d" * 64, "d" * 12)


def test_a_linked_container_has_its_own_name() -> None:
    """`--link` gives a container second names that contain another's; its own name is the one without a second
    slash."""
    raw = {**listed(), "Names": ["/db/alias", "/web", "/other/x"]}
    assert container(raw).name == "web"
    assert container({**raw, "Names": ["/db/alias"]}).name == "c" * 12


def test_project_and_service_come_from_composes_labels() -> None:
    """Project and service come from compose's labels; peers match by them."""
    made = container(compose())
    assert (made.project, made.service) == ("shop", "web")


def test_other_labels_are_ignored() -> None:
    """A container's other labels are not mistakes."""
    raw = compose(traefik__enable="true", fwallow="1", fw__allow="8080", FW__Deny="22")
    assert container_labels.firewall_labels(raw) == {"fw.allow": "8080", "FW.Deny": "22"}
    assert container_labels.firewall_labels({"Labels": None}) == container_labels.firewall_labels({}) == {}
    assert container(raw).spec == PolicySpec(allow=(MORE,), deny=(SSH,))


# --- one network --------------------------------------------------------------------------------------------------


def test_a_network_specific_label_applies_there_only() -> None:
    """`fw.network.front.allow` is for the address on `front`; it has no effect on other networks."""
    raw = listed("front", "back", fw__allow="80", fw__network__front__allow="8080", fw__network__back__policy="closed")
    assert container(raw, "front").spec == PolicySpec(allow=(HTTP, MORE))
    assert container(raw, "back").spec == PolicySpec(allow=(HTTP,), policy="closed")
    assert container(raw, "front").problems == container(raw, "back").notices == ()


def test_a_network_specific_label_overrides_the_general_one() -> None:
    """The value of policy, egress or rate for this network overrides the container's general one."""
    raw = listed(
        "front",
        fw__policy="closed",
        fw__egress="443",
        fw__rate="22 1/day",
        fw__network__front__policy="open",
        fw__network__front__egress="all",
        fw__network__front__rate="22 2/day",
        fw__network__front__log="drop",
    )
    assert container(raw, "front").spec == PolicySpec(
        policy="open", egress=EVERYTHING, rate=(Rate("tcp", 22, 22, 2, "day", 5),), log="drop"
    )


@pytest.mark.parametrize("name", ["front", "shop_front"])
def test_a_network_is_named_as_compose_or_docker_names_it(name: str) -> None:
    """NAME is what the compose file calls the network, or its full name."""
    raw = compose("shop_front", **{f"fw__network__{name}__allow": "8080"})
    made = container(raw, "shop_front", key="shop/front")
    assert (made.spec.allow, made.problems, made.notices) == ((MORE,), (), ())
    assert container(raw, "shop_front").spec.allow == (MORE,)


def test_a_network_with_another_name_in_the_compose_file() -> None:
    """A network with `name:` in the compose file has labels that contain the name that the file uses."""
    raw = compose("edge", fw__network__front__allow="8080", fw__network__edge__deny="22")
    assert container(raw, "edge", key="shop/front").spec == PolicySpec(allow=(MORE,), deny=(SSH,))
    assert container(raw, "edge").spec == PolicySpec(deny=(SSH,))


def test_another_projects_name_of_a_network_does_not_match() -> None:
    """An external network of another project: that project's `front` is not this one's."""
    raw = compose("shop_front", "blog_front", fw__network__front__allow="8080")
    assert container(raw, "shop_front", key="shop/front").spec.allow == (MORE,)
    assert container(raw, "blog_front", key="blog/front").spec.allow == ()
    assert (
        container(listed("blog_front", fw__network__front__allow="1"), "blog_front", key="blog/front").spec
        == PolicySpec()
    )


def test_the_name_of_a_network_in_its_compose_file() -> None:
    """The name comes from the labels that compose puts on its networks; other networks have none."""
    compose_labels = {"com.docker.compose.project": "shop", "com.docker.compose.network": "front"}
    assert container_labels.compose_key({"Labels": compose_labels}) == "shop/front"
    for other in (
        {},
        {"Labels": None},
        {"Labels": {}},
        {"Labels": {"com.docker.compose.network": "front"}},
        {"Labels": {"com.docker.compose.project": "shop"}},
    ):
        assert container_labels.compose_key(other) == ""


def test_names_are_case_sensitive() -> None:
    """`fw.network.Front` is not `front`: names are case-sensitive, keywords are not."""
    raw = listed("front", "Front", fw__NETWORK__Front__ALLOW="8080")
    assert container(raw, "Front").spec.allow == (MORE,)
    assert container(raw, "front").spec.allow == ()
    assert container(raw, "front").problems == ()


def test_a_name_with_dots() -> None:
    """A network may be called `my.net`: the last dot is the key's."""
    raw = listed("my.net", fw__network__my__net__allow="8080")
    assert container(raw, "my.net").spec.allow == (MORE,)


def test_a_label_that_opens_for_an_unknown_network_is_reported() -> None:
    """The label opens nothing, and `fwctl status` reports why."""
    made = container(listed("front", "back", fw__network__nowhere__allow="8080", fw__network__x__log="drop"), "front")
    assert (made.spec, made.problems) == (PolicySpec(), ())
    assert made.notices == (
        "label fw.network.nowhere has no effect: the container is not on network 'nowhere' (it is on back, front)",
        "label fw.network.x has no effect: the container is not on network 'x' (it is on back, front)",
    )


@pytest.mark.parametrize(
    ("key", "value", "restricts_egress"),
    [
        ("deny", "22", False),
        ("policy", "closed", False),
        ("rate", "22 1/day", False),
        ("egress", "none", True),
        ("allow", "22 from 10.0.0.1", False),
    ],
)
def test_a_label_that_closes_for_an_unknown_network_is_a_mistake(key: str, value: str, restricts_egress: bool) -> None:
    """The label was meant to close something and would not: that is a mistake of the container, on each of its
    networks."""
    raw = listed("front", **{f"fw__network__nowhere__{key}": value})
    (problem,) = container(raw, "front").problems
    assert str(problem) == "label fw.network.nowhere=\"…\": the container is not on network 'nowhere'; it is on front"
    assert (problem.closes, problem.confines) == (True, restricts_egress)


def test_a_label_that_closes_for_a_renamed_network_is_a_mistake() -> None:
    """The name may also mean a network with its own name (`name:`, `external:`): the container is closed until the
    label is fixed."""
    raw = compose("shop_back", "edge", fw__network__front__deny="22")
    (problem,) = container(raw, "shop_back").problems
    assert problem.closes
    assert "the container is not on network 'front'; it is on edge, shop_back" in str(problem)
    assert container(raw, "edge", key="shop/front").spec == PolicySpec(deny=(SSH,))
    assert container(compose("shop_back", fw__network__front__deny="22"), "shop_back").problems


def test_a_network_being_connected_need_not_be_listed() -> None:
    """While a container is being connected, its listed networks lack the new one; its name is known anyway."""
    raw = listed("front", fw__network__back__deny="22")
    assert container(raw, "back").spec == PolicySpec(deny=(SSH,))
    assert container(raw, "back").problems == ()
    assert container({**raw, "NetworkSettings": None}, "back").problems == ()


# --- an image's labels --------------------------------------------------------------------------------------------


def test_an_image_opens_nothing() -> None:
    """Labels that come from the image are ignored, and `fwctl status` reports it; the user's own labels apply."""
    image = {"fw.allow": "8080", "fw.policy": "open", "fw.egress": "all", "maintainer": "x"}
    made = container(listed(fw__allow="8080", fw__policy="open", fw__egress="all", FW__ALLOW="443"), image=image)
    assert made.spec == PolicySpec(allow=(HTTPS,))
    assert made.problems == ()
    assert made.notices[0] == (
        'label fw.allow="8080" comes from the image and opens nothing (FW_IMAGE_LABELS=trust allows it)'
    )
    assert [notice.split("=")[0] for notice in made.notices] == ["label fw.allow", "label fw.egress", "label fw.policy"]


def test_the_users_value_overrides_the_images() -> None:
    """If the image and the user set different values, the user's applies."""
    made = container(listed(fw__allow="443"), image={"fw.allow": "8080"})
    assert (made.spec, made.notices) == (PolicySpec(allow=(HTTPS,)), ())


def test_an_image_may_close() -> None:
    """An image label that can only close applies as if the user had set it."""
    image = {"fw.deny": "22", "fw.policy": "closed", "fw.egress": "none", "fw.network.front.deny": "80"}
    made = container(listed("front", **{k.replace(".", "__"): v for k, v in image.items()}), "front", image=image)
    assert made == Container("c" * 64, "web", PolicySpec(deny=(SSH, HTTP), policy="closed", egress=()), network="front")


def test_an_images_egress_applies_where_no_other_is_set() -> None:
    """An image's egress list has the lowest precedence. Its `fw.rate` is ignored: each rate uses kernel memory, which
    an image must not allocate."""
    image = {"fw.egress": "443", "fw.rate": "22 1/day", "fw.log": "none"}
    made = container(listed(**{k.replace(".", "__"): v for k, v in image.items()}), image=image)
    assert made.spec == PolicySpec()
    assert made.image_spec == PolicySpec(egress=(HTTPS,))
    assert len(made.notices) == 3
    assert made.notices[-1] == (
        'label fw.rate="22 1/day" comes from the image and is ignored (FW_IMAGE_LABELS=trust allows it)'
    )


def test_a_mistake_of_an_image_that_opens_is_ignored() -> None:
    """A wrong image label that could only open is not the user's mistake; one that closes is."""
    made = container(listed(fw__allow="808O"), image={"fw.allow": "808O"})
    assert (made.problems, made.spec, made.image_spec) == ((), PolicySpec(), PolicySpec())
    assert made.notices[0].startswith('label fw.allow="808O" comes from the image')
    (problem,) = container(listed(fw__deny="x"), image={"fw.deny": "x"}).problems
    assert problem.closes


def test_a_trusted_image_is_like_a_user() -> None:
    """An image is not inspected with FW_IMAGE_LABELS=trust, and all labels apply."""
    made = container(listed(fw__allow="8080"), image=None)
    assert (made.spec, made.notices) == (PolicySpec(allow=(MORE,)), ())


def test_a_long_value_in_a_notice_is_cut() -> None:
    """A notice stays readable, whatever an image contains."""
    made = container(listed(fw__allow="8" * 5000), image={"fw.allow": "8" * 5000})
    assert len(made.notices[0]) < 200


def test_the_notice_about_ten_thousand_image_labels_is_short() -> None:
    """The notice is short for a key of megabytes and for compose names; none of them is stored."""
    pairs = {f"fw.network.n{n}{'x' * 300}.allow": "8080" for n in range(10_000)}
    made = container({**listed(), "Labels": pairs}, image=pairs)
    assert len(made.notices) == 17
    assert made.notices[-1] == "9984 more labels come from the image and open nothing"
    assert all(len(notice) < 250 for notice in made.notices)
    long = {**COMPOSE, "com.docker.compose.project": "x" * (1 << 20), "com.docker.compose.service": "y" * 4096}
    made = container({**listed(), "Labels": long}, image={})
    assert (made.project, made.service) == ("", "y" * 4096)


@pytest.mark.parametrize(
    ("labels", "closes", "restricts_egress"),
    [
        ({"fw.allow": "8080"}, False, False),
        ({"fw.allow": "22 from 10.0.0.1"}, True, False),
        ({"fw.policy": "open"}, False, False),
        ({"fw.policy": "default"}, True, False),
        ({"fw.policy": "clsed"}, True, False),
        ({"fw.egress": "443"}, False, True),
        ({"fw.egress": "all", "fw.log": "drop"}, False, True),
        ({"fw.log": "drop"}, False, False),
        ({"fw.rate": "22 1/day"}, True, False),
        ({"fw.alow": "22"}, True, False),
        ({"fw.zzzzzz": "22"}, True, True),
        ({"fw.network.front.egress": "443"}, True, True),
        ({"fw.network.front.allow": "443"}, False, False),
    ],
)
def test_while_an_images_labels_are_unknown_no_label_opens(
    labels: dict[str, str], closes: bool, restricts_egress: bool
) -> None:
    """No label opens anything, which is reported as a mistake, and everything that the user may have meant to close is
    closed."""
    raw = listed(**{key.replace(".", "__"): value for key, value in labels.items()})
    made = container(raw, unknown="it is gone; pull it again")
    (problem,) = made.problems
    first = min(labels)
    assert str(problem) == (
        f'label {first}="{labels[first]}": it is unknown whether this label comes from the image: '
        "it is gone; pull it again"
    )
    assert (problem.closes, problem.confines) == (closes, restricts_egress)
    assert made.spec == PolicySpec()
    assert {notice.split('"')[0].removesuffix("=") for notice in made.notices} == {f"label {key}" for key in labels}
    assert all("may come from the image" in notice for notice in made.notices)


def test_while_an_images_labels_are_unknown_labels_that_close_apply() -> None:
    """Labels that can only close apply, whether they are the user's or the image's."""
    made = container(listed(fw__deny="22", fw__policy="closed", fw__egress="none"), unknown="it is gone; pull it again")
    assert made == Container("c" * 64, "web", PolicySpec(deny=(SSH,), policy="closed", egress=()), network="bridge")
    assert container(listed(), unknown="it is gone; pull it again").problems == ()


def test_networks_by_name() -> None:
    """Names of all Docker networks, even if one entry cannot be read otherwise."""
    listed = [{"Name": "a"}, {"Name": 7}, {}, {"Name": "b", "Driver": "overlay"}]
    assert container_labels.known_names(listed) == {"a", "b"}

"""The Dockerfile check: it must read a file as the engine will, and refuse what reaches beyond the build."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import morpheo
from morpheo.errors import BadArchive
from morpheo.runtime.dockerfile import base_images, check_dockerfile

BASE_IMAGES = ("morpheo/base:*", "scratch")
#: Lines before a hostile one; line 2 is the hostile one.
HEAD = "FROM morpheo/base:1\n"


def check(text: str, *base_images: str) -> None:
    check_dockerfile(text, base_images=base_images or BASE_IMAGES)


@pytest.mark.parametrize("image", ["bayes", "logistic", "problem"])
def test_the_images_of_the_demo_are_accepted(image: str) -> None:
    check((Path(morpheo.__path__[0]) / "demo" / "assets" / image / "Dockerfile").read_text())


@pytest.mark.parametrize(
    "text",
    [
        "FROM morpheo/base:1",
        "from morpheo/base:1\nrun echo",
        "  \tFROM\t morpheo/base:1  ",
        "FROM scratch",
        "FROM morpheo/base:1\r\nRUN echo\r\n",
        "# a comment\n\n   # another\nFROM morpheo/base:1",
        "ARG X=1\nFROM morpheo/base:1",
        "FROM --platform=linux/amd64 morpheo/base:1",
        "FROM morpheo/base:1 AS build\nFROM build\nCOPY --from=build /a /b",
        "FROM morpheo/base:1 as Build\nFROM scratch\nCOPY --from=BUILD /a /b\nCOPY --from=0 /a /b",
        "FROM morpheo/base:1\nFROM scratch\nFROM scratch\nCOPY --from=1 /a /b",
        "FR\\\nOM morpheo/base:1",
        "FROM \\\n  morpheo/base:1",
        "FROM morpheo/base:1\nRUN a \\\n  # a comment\n\n  && b",
        "FROM morpheo/base:1\nRUN a \\",
        'FROM morpheo/base:1\nRUN ["python3", "-c", "print(\'http://x\')"]',
        "FROM morpheo/base:1\nRUN echo http://x $HOME \\t && curl http://x",
        'FROM morpheo/base:1\nADD a b c /d/\nADD ["a b", "/c"]',
        "FROM morpheo/base:1\nCOPY --chown=1000:1000 a b\nCOPY $X http: /y",
        "FROM morpheo/base:1\nHEALTHCHECK --interval=5m30s --retries=3 CMD true",
        'FROM morpheo/base:1\nENV A=1 B="2 3"\nLABEL a=b\nEXPOSE 80\nUSER 1\nWORKDIR /x\nSTOPSIGNAL 9\nSHELL ["sh"]',
        'FROM morpheo/base:1\nMAINTAINER me\nCMD ["x"]\nENTRYPOINT ["python3", "/algo.py", "--fast"]',
    ],
)
def test_an_honest_dockerfile_is_accepted(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    "name",
    [
        "problem-1",
        "morpheo/problem:abc",
        "morpheo/bases:1",
        "x/morpheo/base:1",
        "evil.example/morpheo/base:1",
        "MORPHEO/base:1",
        "morpheo/base@sha256:abc",
        "morpheo/base:1@sha256:abc",
        "morpheo/base:$TAG",
        "morpheo/base:${TAG:-1}",
        "$IMAGE",
        "${IMAGE}",
        '"scratch"',
        "scr\\atch",
        "scratch:latest",
        "0",
        "sha256:abc",
        "a1b2c3d4e5f6",
        "http://x",
        "--",
    ],
)
def test_from_names_an_allowed_image_and_nothing_else(name: str) -> None:
    with pytest.raises(BadArchive, match="line 1"):
        check(f"FROM {name}")


def test_the_refusal_of_a_base_image_says_which_are_allowed() -> None:
    with pytest.raises(BadArchive, match=r"line 1: FROM debian is not accepted.*morpheo/base:\*.*MORPHEO_BASE_IMAGES"):
        check("FROM debian")


@pytest.mark.parametrize(
    ("pattern", "name", "accepted"),
    [
        ("python", "python", True),
        ("python", "python:latest", True),
        ("python", "python:3.11", False),
        ("python:3.11", "python", False),
        ("python:*", "python", True),
        ("python:3.*", "python:3.11-slim", True),
        ("python:*", "python:5000/evil", False),
        ("python:*", "python:5000/evil:1", False),
        ("python:3*", "python:3128/evil:1", False),
        ("registry.example/*", "registry.example/a/b:1", True),
        ("registry.example/*", "registry.example/a", True),
        ("registry.example/*", "registry.example.evil/a", False),
        ("registry.example:5000/a:*", "registry.example:5000/a:1", True),
        ("registry.example:5000/a:*", "registry.example:5000/b:1", False),
        ("*", "registry.example:5000/a:1", True),
        ("*", "a@sha256:abc", False),
        ("*", "$X", False),
    ],
)
def test_a_pattern_for_tags_does_not_match_the_port_of_a_registry(pattern: str, name: str, *, accepted: bool) -> None:
    if accepted:
        check(f"FROM {name}", pattern)
    else:
        with pytest.raises(BadArchive, match="not accepted here"):
            check(f"FROM {name}", pattern)


@pytest.mark.parametrize(
    "line",
    [
        "FROM",
        "FROM scratch AS",
        "FROM scratch AS a b",
        "FROM scratch IS a",
        "FROM scratch a",
        "FROM scratch AS 0",
        "FROM scratch AS a/b",
        "FROM scratch AS a:b",
        'FROM scratch AS "a"',
        "FROM scratch AS $a",
        "FROM scratch AS \u0130",  # which the engine's lower case makes i
    ],
)
def test_from_has_the_form_that_the_engine_takes(line: str) -> None:
    with pytest.raises(BadArchive, match="line 1"):
        check(line)


@pytest.mark.parametrize(
    "text",
    [
        "COPY --from=problem-1 /secret /",
        "copy --from=problem-1 /secret /",
        "COPY  \t --from=problem-1 /secret /",
        "COPY --chown=1 --from=problem-1 /secret /",
        "COPY --from=x --from=problem-1 /secret /",
        "COPY --from=0 /secret /",
        "COPY --from=1 /secret /",
        "COPY --from=-1 /secret /",
        "COPY --from= /secret /",
        "COPY --from /secret /",
        "COPY --from=$X /secret /",
        "COPY --from=${X:-problem-1} /secret /",
        'COPY --from="problem-1" /secret /',
        "COPY --fr\\om=problem-1 /secret /",
        'COPY --fr"om"=problem-1 /secret /',
        "COPY --'from'=problem-1 /secret /",
        "COPY --FROM=problem-1 /secret /",
        "COPY --chown=\u00e0--from=problem-1 /secret /",  # its second byte is a no-break space to the engine
        "ADD --from=problem-1 /secret /",
        'COPY --from=problem-1 ["/secret", "/"]',
        "CO\\\nPY --from=problem-1 /secret /",
        "COPY\\\n --from=problem-1 /secret /",
        "COPY\\\n\t--from=problem-1 /secret /",
        "COPY \\\n--from=problem-1 /secret /",
        "COPY --fr\\\nom=problem-1 /secret /",
        "COPY --from=\\\nproblem-1 /secret /",
        "COPY \\  \t\n# comment\n\n   # comment \\\n--from=problem-1 /secret /",
        "\\\nCOPY --from=problem-1 /secret /",
        "\\\n \\\n COPY --from=problem-1 /secret /",
        "COPY --from=problem-1 \\",
        "RUN a \\\n# b \\\n\nCOPY x\nCOPY --from=problem-1 /secret /",
        "# comment \\\nCOPY --from=problem-1 /secret /",
        "  # comment \\\nCOPY --from=problem-1 /secret /",
    ],
)
def test_copy_takes_nothing_from_an_image(text: str) -> None:
    with pytest.raises(BadArchive, match="line"):
        check(HEAD + text)


def test_a_stage_is_not_earlier_than_itself() -> None:
    # While a stage is built the engine does not know its name, and looks for an image of that name or id.
    with pytest.raises(BadArchive, match="line 3: --from may only name an earlier stage"):
        check("FROM scratch AS first\nFROM scratch AS a1b2c3d4e5f6\nCOPY --from=a1b2c3d4e5f6 /secret /")


def test_a_stage_that_comes_later_is_not_known_yet() -> None:
    with pytest.raises(BadArchive, match="not accepted here"):
        check("FROM later\nFROM scratch AS later")
    with pytest.raises(BadArchive, match="earlier stage"):
        check("FROM scratch\nCOPY --from=later a b\nFROM scratch AS later")


@pytest.mark.parametrize(
    "line",
    [
        "RUN echo \\\\",
        "RUN echo \\\\ \t",
        "RUN echo \\\\\\",
        "ENV A=b\\\\",
        "\\\\",
    ],
)
def test_a_line_that_some_engines_continue_and_others_end_is_refused(line: str) -> None:
    # One reading of the second line hides the third one in it.
    with pytest.raises(BadArchive, match="line 2: a line may not end with two backslashes"):
        check(HEAD + line + "\nCOPY --from=problem-1 /secret /")


def test_two_backslashes_inside_a_line_or_a_comment_are_harmless() -> None:
    check(HEAD + "RUN printf 'a\\\\n' && \\\n echo\n# comment \\\\\nRUN echo \\ \\\n b")


@pytest.mark.parametrize(
    "line",
    [
        "ADD http://127.0.0.1/x /y",
        "ADD https://x/y /z",
        "add http://x /y",
        "ADD a http://x /y",
        "ADD a b c https://x /y/",
        "ADD --chown=1 http://x /y",
        'ADD ["http://x", "/y"]',
        'ADD [ "a", "http://x", "/y" ]',
        'ADD ["a","http://x","/y"]',
        'ADD ["\\u0068ttp://x", "/y"]',
        'ADD ["http:\\/\\/x", "/y"]',
        'ADD "http://x" /y',
        "ADD 'http://x' /y",
        'ADD "h"ttp://x /y',
        "ADD h''ttp://x /y",
        'ADD http:"/"/x /y',
        "ADD 'http:'//x /y",
        "ADD ht\\tp://x /y",
        "ADD http:\\/\\/x /y",
        "ADD $URL /y",
        "ADD ${URL} /y",
        "ADD a$URL /y",
        'ADD "$URL" /y',
        'ADD ["$URL", "/y"]',
        "ADD git@github.com:a/b.git /y",
        "ADD 'git'@github.com:a/b.git /y",
        "ADD ssh://x /y",
        "ADD ftp://x /y",
        "ADD \\\n http://x /y",
        "ADD http:/\\\n/x /y",
        "A\\\nDD http://x /y",
    ],
)
def test_add_fetches_nothing(line: str) -> None:
    with pytest.raises(BadArchive, match="line 2: ADD of a URL"):
        check(HEAD + line)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("VOLUME /data", "VOLUME"),
        ("volume /data", "VOLUME"),
        ('VOLUME ["/data"]', "VOLUME"),
        ("VOL\\\nUME /data", "VOLUME"),
        ("VOLUME", "VOLUME"),
        ("ONBUILD COPY --from=problem-1 / /", "ONBUILD"),
        ("onbuild run echo", "ONBUILD"),
        ("ONBU\u0130LD RUN echo", "not an instruction"),  # which the engine's lower case makes onbuild
        ("RUN --mount=type=cache,target=/x echo", "flag"),
        ("RUN --network=host echo", "flags of RUN"),
        ("RUN --security=insecure echo", "flags of RUN"),
        ("RUN \\\n --network=host echo", "flags of RUN"),
        ("RUN -- echo", "flag"),
        ("STOPSIGNAL no space left on device", "name or the number of a signal"),
        ("STOPSIGNAL $A", "name or the number of a signal"),
        ("CMD --x=$y echo", "flag"),
        ("INCLUDE other", "not an instruction"),
        ("COPY--from=problem-1 a b", "not an instruction"),
        ("\ufeffFROM scratch", "not an instruction"),
        ('{"syntax": "evil"}', "not an instruction"),
        ("//syntax=evil", "not an instruction"),
        ("\x00RUN echo", "not an instruction"),
    ],
)
def test_an_instruction_that_is_not_accepted_is_named_with_its_line(line: str, sentence: str) -> None:
    with pytest.raises(BadArchive, match=f"line 2: .*{sentence}"):
        check(HEAD + line)


@pytest.mark.parametrize(
    "text",
    [
        'RUN <<"#"\nRUN x \\\n#\nCOPY --from=problem-1 / /',
        "RUN cat <<EOF\nEOF",
        "RUN <<-EOF\nEOF",
        "RUN 3<<EOF\nEOF",
        "COPY <<EOF /x\nEOF",
        "ADD <<EOF /x\nEOF",
        "RUN ${x:+y}<<EOF\nEOF",
        "RUN <\\\n<EOF\nEOF",
    ],
)
def test_a_heredoc_whose_lines_some_engines_skip_is_refused(text: str) -> None:
    with pytest.raises(BadArchive, match="line 2: << is not accepted"):
        check(HEAD + text)


@pytest.mark.parametrize(
    "line",
    ["# syntax=evil/frontend", "#syntax=x", "# escape=`", "#\tESCAPE = `", "  # escape=`", "# check=skip=all"],
)
@pytest.mark.parametrize("before", ["", "# comment\n", "\n", HEAD, HEAD + "RUN a \\\n"])
def test_a_parser_directive_is_refused_wherever_it_stands(before: str, line: str) -> None:
    with pytest.raises(BadArchive, match="parser directives"):
        check(f"{before}{line}\n{HEAD}")


@pytest.mark.parametrize(
    "space",
    "\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2007\u2028\u2029\u202f\u205f\u3000",
    ids=lambda char: hex(ord(char)),
)
@pytest.mark.parametrize("text", ["COPY{}--from=problem-1 a b", "{}COPY --from=problem-1 a b", "RUN a \\{} \nCOPY a b"])
def test_white_space_that_engines_read_differently_is_refused(text: str, space: str) -> None:
    with pytest.raises(BadArchive, match="white space other than"):
        check(HEAD + text.format(space))


def test_a_return_is_accepted_only_before_the_end_of_a_line() -> None:
    for text in ("RUN a\rCOPY b c\n", "RUN a\r\r\n", "RUN a\r"):
        with pytest.raises(BadArchive, match="white space"):
            check(HEAD + text)


def test_a_return_does_not_hide_a_continued_line() -> None:
    with pytest.raises(BadArchive, match="line 2"):
        check(HEAD + "COPY \\\r\n --from=problem-1 /secret /\r\n")


@pytest.mark.parametrize("text", ["", "\n\n", "# FROM scratch", "RUN echo", "ARG X", "\\", "\\\n\\\n"])
def test_a_dockerfile_without_from_is_refused(text: str) -> None:
    with pytest.raises(BadArchive, match="no FROM"):
        check(text)


def test_the_line_named_is_where_the_instruction_begins() -> None:
    with pytest.raises(BadArchive, match="line 4:"):
        check("# comment\nFROM scratch\n\nADD \\\n  a \\\n  http://x /y\n")


@pytest.mark.parametrize(
    "lines",
    [
        "WORKDIR /proc/self/fd/8",
        "WORKDIR /proc",
        "WORKDIR //proc/self",
        "WORKDIR /x/../proc/1",
        "WORKDIR /./sys/fs",
        "WORKDIR /dev/shm",
        "WORKDIR proc/self/fd/8",
        "WORKDIR /proc\nWORKDIR /x",
        "WORKDIR /x\nWORKDIR ../proc",
        'WORKDIR "/pr"oc/self',
        "WORKDIR '/proc'",
        "WORKDIR $X",
        "WORKDIR /${X}oc",
        "WORKDIR /pr\\oc",
        "ENV X=/proc\nWORKDIR ${X}/self/fd/8",
        "workdir \\\n /proc",
    ],
)
def test_no_instruction_starts_where_what_it_finds_is_not_its_image_s(lines: str) -> None:
    with pytest.raises(BadArchive, match="WORKDIR"):
        check(HEAD + lines)


@pytest.mark.parametrize("folder", ["/process", "/develop/sys", "/data/proc", "a b", "/", '"/x y"'])
def test_an_honest_folder_is_accepted(folder: str) -> None:
    check(f"{HEAD}WORKDIR {folder}")


@pytest.mark.parametrize(
    "lines",
    [
        ["ENV A=" + "x" * 1000] + ["ENV A=$A$A"] * 40,
        ["ENV A=" + "x" * 1000] + ["ENV A ${A}${A}"] * 40,
        ["ARG A=" + "x" * 1000] + ["ARG A=$A$A"] * 40,
        ["ENV A=" + "x" * 1000] + ["ENV B=$A$A\nENV A=$B"] * 40,
        ["ENV A=" + "x" * 1000] + ["ENV A=${A:-x}${A:+$A}"] * 40,
        ["ENV A=" + "x" * 20_000, "LABEL " + " ".join(f"l{number}=$A" for number in range(1000))],
        ["ENV A=" + "x" * 20_000] + [f"EXPOSE ${{A}}{number}" for number in range(20)],
        ["LABEL a=" + "$PATH" * 10_000],
    ],
)
def test_variables_do_not_make_it_longer_than_it_may_be(lines: list[str]) -> None:
    with pytest.raises(BadArchive, match="variables make it too long"):
        check(HEAD + "\n".join(lines))


def test_the_variables_of_an_instruction_that_runs_are_the_shell_s() -> None:
    check(HEAD + "ENV A=" + "x" * 10_000 + "\n" + "RUN echo " + "$A" * 1000 + "\nENV PATH=/x:$PATH B=$A\n")


def test_there_are_at_most_500_instructions() -> None:
    check(HEAD + "RUN true\n" * 499)
    with pytest.raises(BadArchive, match="line 501: more than 500 instructions"):
        check(HEAD + "RUN true\n" * 500)


def test_a_long_dockerfile_is_read_in_time() -> None:
    began = time.process_time()
    for text in (
        "\n" * 65_000,
        "#\n" * 32_000,
        "RUN \\\n" * 13_000,
        "ENV A=" + "$A" * 32_000,
        "COPY " + "--a=b " * 10_000,
    ):
        with contextlib.suppress(BadArchive):
            check(HEAD + text)
    assert time.process_time() - began < 5


def as_engine(text: str) -> list[str]:
    """Return the instructions as moby's parser joins their lines, for texts without trailing double backslashes."""
    instructions, joined = [], None
    for read in text.split("\n"):
        line = read.lstrip() if joined is None else read
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        bare = line.rstrip(" \t")
        joined = (joined or "") + bare.removesuffix("\\")
        if not bare.endswith("\\"):
            instructions.append(joined.strip())
            joined = None
    return [*instructions, *([joined.strip()] if joined else [])]


PIECES = st.lists(
    st.sampled_from(["COPY", "RUN", " x", " ", "\t", "\\", "\\\n", "\\ \n", "\n", "\n# c", "\n # c \\"]), max_size=6
).map("".join)


@given(before=PIECES, inside=PIECES, after=PIECES)
def test_whatever_the_lines_around_it_what_the_engine_would_copy_is_refused(
    before: str, inside: str, after: str
) -> None:
    text = f"{HEAD}{before}\nCOPY{inside}--from=problem-1 a b{after}"
    copies = [line for line in as_engine(text) if line.split()[:2] == ["COPY", "--from=problem-1"]]
    try:
        check(text)
    except BadArchive:
        return
    assert not copies


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("FROM morpheo/base:1\nRUN echo FROM other\n", ["morpheo/base:1"]),
        (
            "# FROM none\nfrom --platform=linux/amd64 \\\n morpheo/base:2 AS x\nFROM X\nFROM scratch\n",
            ["morpheo/base:2"],
        ),
        ("FROM a AS b\nFROM c AS d\nFROM d\nFROM b AS e\n", ["a", "c"]),
        ("RUN echo\n", []),
    ],
    ids=["one", "continued", "stages", "none"],
)
def test_images_that_a_dockerfile_starts_from(text: str, images: list[str]) -> None:
    assert base_images(text) == images

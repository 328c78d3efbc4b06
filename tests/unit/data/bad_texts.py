"""Kinds of lines, questions, options and answers: a file of JSON lines."""

import json
import math

from tests.unit.data.bad_kinds import PICTURE, REMOVED, Kind, Left, Nothing, Row, Source, Used, line


def good(name: str) -> Row:
    return {
        "problem_id": f"id of {name}",
        "problem": f"what colour is at a1 ? {name}",
        "data_type": "image",
        "problem_type": "colour",
        "solution": "<answer>red</answer>",
        "path": "good.png",
    }


def broken(reason: str) -> Left:
    return Left("broken", reason)


LINES = [
    Kind("byte order mark", lambda row: b"\xef\xbb\xbf" + line(row), Used()),
    Kind("CRLF", lambda row: line(row) + b"\r", Used()),
    Kind("spaces around", lambda row: b" \t " + line(row) + b"  ", Used()),
    Kind("blank lines", lambda row: b"\n   \n\t\r\n", Nothing()),
    Kind("a column twice", lambda row: line(row)[:-1] + b', "solution": "green"}', Used(answer="green")),
    Kind("surrogate pairs", lambda row: line(row).replace(b"a1", b"\\ud83d\\ude00"), Used()),
    Kind("half a line", lambda row: line(row)[:40], broken("not JSON")),
    Kind("trailing comma", lambda row: line(row) + b",", broken("not JSON: Extra data")),
    Kind("two rows in a line", lambda row: line(row) + b" " + line(row), broken("not JSON: Extra data")),
    Kind("carriage returns alone", lambda row: line(row) + b"\r" + line(row), broken("not JSON: Extra data")),
    Kind("bad UTF-8", lambda row: line(row).replace(b"a1", b"\xff\xfe"), broken(r"not UTF-8: byte \d+ is 0xff")),
    Kind("Latin-1", lambda row: line(row).replace(b"a1", "grün".encode("latin-1")), broken("not UTF-8: .* is 0xfc")),
    Kind("UTF-16", lambda row: line(row).decode().encode("utf-16-le"), broken("not JSON")),
    Kind("byte order mark in the middle", lambda row: b"\xef\xbb\xbf" + line(row), broken("not JSON: .*BOM")),
    Kind("a list", lambda row: [row], broken("not an object but list")),
    Kind("a text", lambda row: "text", broken("not an object but str")),
    Kind("null", lambda row: None, broken("not an object but NoneType")),
    Kind("a number", lambda row: 7, broken("not an object but int")),
    Kind("not a number", lambda row: b"NaN", broken("not an object but float")),
    Kind("an empty object", lambda row: {}, broken("problem: not in the row")),
    Kind("deeply nested", lambda row: b'{"problem": ' + b"[" * 200_000, broken("not JSON: .*recursion")),
    Kind("nested as deep as goes", lambda row: row | {"extra": json.loads("[" * 400 + "]" * 400)}, Used()),
    Kind("Python instead of JSON", lambda row: str(row).encode(), broken("not JSON")),
    Kind("a comment", lambda row: b"# rows of May", broken("not JSON")),
    Kind("a mark of a merge", lambda row: b"<<<<<<< HEAD", broken("not JSON")),
    Kind("a raw tab in a text", lambda row: line(row).replace(b"a1", b"a\t1"), broken("not JSON: Invalid control")),
    Kind("an integer of 5000 digits", lambda row: b'{"solution": 1' + b"0" * 5000 + b"}", broken("not JSON: .*digits")),
    Kind("65 MiB", lambda row: line(row)[:-2] + b"a" * (65 * 2**20) + b'"}', broken("line is longer than 64 MiB")),
    Kind("extra columns", {"extra": {"a": [1, None, {"b": math.nan}]}, "": 0}, Used()),
]

SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|endoftext|>")
QUESTIONS = [
    Kind("no question", {"problem": REMOVED}, broken("^problem: not in the row")),
    Kind("null question", {"problem": None}, broken("^problem: not text but NoneType")),
    Kind("list question", {"problem": ["what ?"]}, broken("^problem: not text but list")),
    Kind("number question", {"problem": 7}, broken("^problem: not text but int")),
    Kind("empty question", {"problem": ""}, broken("^problem: empty")),
    Kind("whitespace question", {"problem": " \n\t\u3000\u2028"}, broken("^problem: empty")),
    Kind("1 MB question", {"problem": "a" * 10**6}, broken("^problem: 1,000,000 characters, at most 50,000")),
    Kind("question of many tokens", {"problem": "a1 " * 16_000}, Left("too_long", "^16,0.* at most 600 .*leave")),
    Kind("zero byte", {"problem": "a\0b"}, broken("^problem: holds a zero byte")),
    Kind("lone surrogate", {"problem": "a\ud800b"}, broken("^problem: holds half a character")),
    *(Kind(f"question with {token}", {"problem": f"what {token} ?"}, broken("the text holds <")) for token in SPECIAL),
    Kind(
        "special token in an option", {"options": ["A. <|im_end|>", "B. red"]}, broken(r"the text holds <\|im_end\|>")
    ),
    Kind("torn special token", {"problem": "what <|im_\u200bend|> < |im_end|> ?"}, Used()),
    Kind("private use", {"problem": "what \ue000 ?"}, broken("the text holds .*has a special meaning")),
    Kind("control characters", {"problem": "what \x07\x1b[31m\x7f\x0b\x1c is it ?"}, Used()),
    Kind("line separators", {"problem": "what\u2028is\x85it\n\n\r\nat\ra1 ?"}, Used()),
    Kind("right to left", {"problem": "\u202eمه ما هذا؟ שלום\u202c ?"}, Used()),
    Kind("emoji and combining marks", {"problem": "👩‍👩‍👧 e\u0301\u0302\u0303 z̷a̷l̷g̷o̷ 🇩🇪 ?"}, Used()),
    Kind("response tags", {"problem": "is </think> <answer> after <think> ?"}, Used()),
    Kind("template language", {"problem": "{{ 7 * 7 }} {% for %} {0} %s ${HOME} ?"}, Used()),
    Kind("spaces around the question", {"problem": "  \nwhat is around ?\t"}, Used()),
    Kind("marks beyond pictures", {"problem": "<image> or <image> ?"}, broken("^problem: 2 <image> for 1 images")),
    Kind(
        "a mark without a picture",
        {"problem": "<image> ?", "path": REMOVED, "data_type": None},
        broken("1 <image> for 0 images"),
    ),
    Kind("a video's mark", {"problem": "<video> ?"}, broken("^problem: 0 <image> for 1 images")),
    Kind("a mark in an option", {"options": ["A. <image>", "<image>"]}, broken("2 <image> for 1 images")),
    Kind("pictures without marks", {"path": ["good.png", "good.png"]}, Used((PICTURE, PICTURE))),
    Kind("fewer marks", {"problem": "<image> ?", "path": ["good.png"] * 2}, broken("1 <image> for 2 images")),
    Kind("options that are text", {"options": "A or B"}, broken("^options: not a list of texts")),
    Kind("options by letter", {"options": {"A": "one"}}, broken("^options: not a list of texts")),
    Kind("options with numbers", {"options": ["A", 2]}, Used()),
    Kind("options with null", {"options": ["A", None]}, broken("^options: not a list of texts")),
    Kind("options with empty text", {"options": ["A. one", " "]}, broken("^options: empty")),
    Kind("options with a zero byte", {"options": ["A. one", "\0"]}, broken("^options: holds a zero byte")),
    Kind("no options", {"options": []}, Used()),
    Kind("null options", {"options": None}, Used()),
    Kind("two options", {"options": ["A. one ", "B. Red"]}, Used(answer="B")),
    Kind(
        "an answer that is not an option",
        {"options": ["A. one", "B. two"]},
        broken("^solution: 'red' is not one of the 2"),
    ),
    Kind("an answer that is two options", {"options": ["A. red", "B. red"]}, broken("^solution: 'red' fits options A")),
    Kind(
        "a letter beyond the options",
        {"options": ["A. red", "B. two"], "solution": "c"},
        broken("^solution: 'c' is not one of the 2 options"),
    ),
    Kind("kind that is a list", {"problem_type": ["a"]}, broken("^problem_type: not text but list")),
    Kind("kind that is an object", {"problem_type": {"a": 1}}, broken("^problem_type: not text but dict")),
    Kind("kind with half a character", {"problem_type": "\ud800"}, broken("^problem_type: holds half a character")),
    Kind("no kind", {"problem_type": REMOVED}, Used()),
    Kind("null kind", {"problem_type": None}, Used()),
    Kind("kind that is a number", {"problem_type": 3}, Used()),
    Kind("one id", {"problem_id": "the same"}, Used()),
    Kind("one id again", {"problem_id": "the same"}, Used()),
    Kind("no id", {"problem_id": REMOVED}, Used()),
    Kind("odd id", {"problem_id": {"a": ["\ud800"]}}, Used()),
    Kind("once", {"problem": "twice ?", "problem_id": 1}, Used()),
    Kind("twice", {"problem": "twice ?", "problem_id": 2}, Left("duplicate", "the same .*as lines/")),
    Kind("thrice", {"problem": " twice ? ", "solution": "blue"}, Left("duplicate", "the same .*as lines/")),
]


def answered(kind: str, solution: object) -> Row:
    return {"problem_type": kind, "solution": solution}


CANNOT, WRONG = broken("the verifier cannot judge the answer"), broken("the verifier finds the answer .* wrong")
ANSWERS = [
    Kind("no answer", {"solution": REMOVED}, broken("^solution: not in the row")),
    Kind("null answer", {"solution": None}, broken("^solution: not an answer but None")),
    Kind("true", {"solution": True}, broken("^solution: not an answer but True")),
    Kind("false", {"solution": False}, broken("^solution: not an answer but False")),
    Kind("NaN", {"solution": math.nan}, broken("^solution: nan is not an answer")),
    Kind("Infinity", {"solution": math.inf}, broken("^solution: a number beyond 1e300")),
    Kind("-Infinity", {"solution": -math.inf}, broken("^solution: a number beyond 1e300")),
    Kind("1e999", lambda row: line(row).replace(b'"<answer>red</answer>"', b"1e999"), broken("beyond 1e300")),
    Kind("400 digits", {"solution": 10**400}, broken("^solution: a number beyond 1e300")),
    Kind("empty answer", {"solution": ""}, broken("^solution: empty")),
    Kind("whitespace answer", {"solution": " \n"}, broken("^solution: empty")),
    Kind("empty tags", {"solution": "<answer> </answer>"}, broken("^solution: empty")),
    Kind("list answer", {"solution": ["red"]}, broken("^solution: not text but list")),
    Kind("object answer", {"solution": {"a": "red"}}, broken("^solution: not text but dict")),
    Kind("an open tag", {"solution": "<answer>red"}, broken("^solution: holds a tag")),
    Kind("a closing tag", {"solution": "red</answer>"}, broken("^solution: holds a tag")),
    Kind("tags twice", {"solution": "<answer><answer>red</answer></answer>"}, broken("^solution: holds a tag")),
    Kind("a thought in it", {"solution": "<think>a</think> red"}, broken("^solution: holds a tag")),
    Kind("answer with a zero byte", {"solution": "r\0d"}, broken("^solution: holds a zero byte")),
    Kind("answer with half a character", {"solution": "r\udfffd"}, broken("^solution: holds half a character")),
    Kind("answer with media tokens", {"solution": "<|image_pad|>"}, broken(r"<\|image_pad\|>")),
    Kind("answer that ends the turn", {"solution": "red<|im_end|>"}, broken(r"<\|im_end\|>")),
    Kind("1 MB answer", {"solution": "red " * 250_000}, broken("^solution: 999,999 characters, at most")),
    Kind("answer without tags", {"solution": " red "}, Used()),
    Kind("number answer", {"solution": -1.5}, Used(answer="-1.5")),
    Kind("zero answer", {"solution": 0}, Used(answer="0")),
    Kind("numerical: a few", answered("numerical", "a few"), CANNOT),
    Kind("numerical: two", answered("numerical", "3 or 4"), CANNOT),
    Kind("numerical: by zero", answered("numerical", "1/0"), CANNOT),
    Kind("numerical: 400 digits", answered("numerical", "9" * 400), CANNOT),
    Kind("numerical: 1,024", answered("numerical", "1,024"), Used(answer="1,024")),
    Kind("numerical: 50 %", answered("numerical", "50 %"), Used(answer="50 %")),
    Kind("regression: n/a", answered("regression", "n/a"), CANNOT),
    Kind("regression: 0", answered("regression", 0), Used(answer="0")),
    Kind("choice: A, B", answered("multiple choice", "A, B"), Used(answer="A, B")),
    Kind("choice: (A) or (B)", answered("multiple choice", "(A) or (B)"), WRONG),
    Kind("choice: (b)", answered("multiple choice", "(b)"), Used(answer="(b)")),
    Kind("free form: 红色", answered("free-form", "红色"), CANNOT),
    Kind("OCR: 红色", answered("OCR", "红色"), Used(answer="红色")),
    Kind("box: text", answered("box", "upper left"), CANNOT),
    Kind("box: inside out", answered("box", "[9, 9, 1, 1]"), CANNOT),
    Kind("box: three numbers", answered("box", "[1, 2, 3]"), CANNOT),
    Kind("box", answered("box", "[1, 2, 3, 4]"), Used(answer="[1, 2, 3, 4]")),
    Kind("interval: backwards", answered("interval", "10 to 3 s"), CANNOT),
    Kind("mathematics: none", answered("mathematics", "the cat"), CANNOT),
    Kind("mathematics: one half", answered("mathematics", "1/2"), Used(answer="1/2")),
    Kind("another kind", answered("riddle", "an egg"), Used(answer="an egg")),
    Kind("half a line at the end", lambda row: line(row)[:-9], broken("not JSON")),
]

TEXTS = Source("lines", ".jsonl", "video_r1", [*LINES, *QUESTIONS, *ANSWERS], good)

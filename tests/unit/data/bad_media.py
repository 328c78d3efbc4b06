"""Kinds of paths, pictures and videos: in files that a JSON list names, and as bytes in a parquet file."""

import base64
import functools
import gzip
import os
import stat
from pathlib import Path

from tests.unit.data import bad_files as files
from tests.unit.data.bad_files import BLACK, BLUE, GREEN, RED, WHITE
from tests.unit.data.bad_kinds import CLIP, PICTURE, REMOVED, Kind, Left, Row, Seen, Source, Used
from tests.unit.data.bad_texts import broken

CUT, NO_PICTURE, NO_VIDEO = broken("cut short or damaged"), broken("not a picture"), broken("not a video")
GONE, OUT, NO_PATH = (
    broken(r"^path(\[1\])?: .*no such file below"),
    broken("^path: .* leads out of"),
    broken("is not a valid path"),
)
TOO_LONG = Left("too_long", r"^[\d,]+ tokens, at most 600 .* leave room for a response")


def good_in_file(name: str) -> Row:
    return {
        "problem_id": name,
        "problem": f"what colour is at a1 ? {name}",
        "data_type": "image",
        "problem_type": "colour",
        "solution": "<answer>red</answer>",
        "path": "good.png",
        "process": "<think>a1 red</think>",
    }


def good_in_bytes(name: str) -> Row:
    return {"problem": f"where is it ? {name}", "answer": "red", "images": [{"bytes": files.png()}], "videos": []}


def at(name: str, path: object, end: Left | Used, content: bytes | None = None, **changes: object) -> Kind:
    """A picture by its path, with the file's content where there is to be one."""
    return Kind(name, {"path": path, **changes}, end, {} if content is None else {str(path): content})


def video_at(name: str, path: str, content: bytes, end: Left | Used) -> Kind:
    return at(name, path, end, content, data_type="video")


def picture(name: str, content: bytes, end: Left | Used) -> Kind:
    return Kind(name, {"images": [{"bytes": content}]}, end)


def video(name: str, content: bytes, end: Left | Used) -> Kind:
    return Kind(name, {"images": [], "videos": [{"bytes": content}]}, end)


CLEAR = Seen("image", 84, 56, WHITE)
clip = functools.cache(files.video)

THOUGHTS = [
    Kind("no thought", {"process": REMOVED}, broken("^process: not in the row")),
    Kind("null thought", {"process": None}, broken("^process: not text but NoneType")),
    Kind("empty thought", {"process": "<think></think>"}, broken("^process: empty")),
    Kind("an answer in the thought", {"process": "a <answer>b</answer>"}, broken("^process: holds a tag")),
    Kind("an open thought", {"process": "<think>a1 red"}, broken("^process: holds a tag")),
    Kind(
        "a thought that ends the turn",
        {"process": "a1 <|im_end|> red"},
        broken(r"<\|im_end\|> .*has a special meaning"),
    ),
    Kind("a thought of 300 kB", {"process": "red " * 75_000}, broken("^process: 299,999 characters, at most 200,000")),
    Kind("a row that is a list", lambda row: [row], broken("not an object but list")),
    Kind("a row that is a text", lambda row: "row", broken("not an object but str")),
    Kind("a row that is null", lambda row: None, broken("not an object but NoneType")),
    Kind("a row that is a number", lambda row: 7.5, broken("not an object but float")),
]
PATHS = [
    at("missing path", "pictures/none.png", GONE),
    at("empty path of a picture", "", broken("^path: |^data_type: ")),
    at("no path of a picture", REMOVED, broken("^path: |^data_type: ")),
    at("directory", "folder", GONE),
    at("the root itself", ".", GONE),
    at("out by ..", "../secret.png", OUT),
    at("out by .. to nowhere", "../../../../nothing.png", OUT),
    at("in and out and in by ..", "folder/../good.png", Used()),
    at("absolute path", "/etc/passwd", OUT),
    at("device by its path", "/dev/zero", OUT),
    at("link out of the root", "links/out.png", OUT),
    at("link to a folder outside", "links/outside/secret.png", OUT),
    at("link to a device", "links/zero.png", OUT),
    at("link to nothing", "links/nothing.png", GONE),
    at("links in a loop", "links/one.png", broken("is not a valid path|no such file")),
    at("link to inside", "links/inside.png", Used()),
    at("pipe", "pipe.png", GONE),
    at("socket", "socket.png", GONE),
    at("zero byte in a path", "a\0.png", NO_PATH),
    at("surrogate in a path", "a\ud800.png", NO_PATH),
    at("escape sequence in a path", "\x1b[2J\x07gone.png", broken("^path: .*gone.png.*no such file below")),
    at("path of 5000 letters", "a" * 5000, broken("is not a valid path|no such file")),
    at("path of 5000 folders", "a/" * 5000, broken("is not a valid path|no such file")),
    at("URL", "https://example.org/a.png", broken("^path: .* is an address; download it first")),
    at("file URL", "file:///etc/passwd", broken("^path: .* is an address")),
    at("data URI", "data:image/png;base64,iVBORw0KGgo=", broken("^path: .*(no such file|is not a valid path|address)")),
    at("base64", base64.b64encode(files.png() * 9).decode(), broken("^path: .*(no such file|is not a valid path)")),
    at("number for a path", 7, broken("^path: neither a path nor bytes but int")),
    at("true for a path", True, broken("^path: neither a path nor bytes but bool")),
    at("bytes as a list of numbers", {"bytes": [137, 80, 78, 71]}, broken("^path: neither a path nor bytes but list")),
    at("object without either", {"bytes": None, "path": None}, broken("^path: neither a path nor bytes but NoneType")),
    at("null in a list", ["good.png", None], broken(r"^path\[1\]: neither a path nor bytes but NoneType")),
    at("lists in a list", [["good.png"]], broken("^path: neither a path nor bytes but list")),
    at("one of two missing", ["good.png", "none.png"], GONE),
    at("home", "~/a.png", GONE),
    at("another system's path", "pictures\\a.png", GONE),
    at("space after the path", "good.png ", GONE),
    at("odd name", "pictures/ü 图 \n 'a'.png", Used(), files.png()),
    at("8 GiB", "sparse.png", broken("needs more than 6 GiB|too large")),
]
IN_FILES = [
    at("zero bytes", "pictures/empty.png", broken("the file is empty"), b""),
    at("PNG named .jpg", "pictures/png.jpg", Used(), files.png()),
    at("PNG named .mp4", "pictures/png.mp4", Used(), files.png()),
    at("picture without a suffix", "pictures/png", Used(), files.png()),
    at("web page named .jpg", "pictures/page.jpg", NO_PICTURE, files.HTML),
    at("Git LFS pointer", "pictures/lfs.png", NO_PICTURE, files.LFS_POINTER),
    at("SVG", "pictures/a.svg", NO_PICTURE, files.SVG),
    at("video given as a picture", "videos/picture.mp4", NO_PICTURE, clip()),
    at("sixteen pictures", [f"many/{i}.png" for i in range(16)], Used([Seen("image", 56, 56, RED)] * 16)),
    at("sixty pictures", [f"many/{i}.png" for i in range(60)], broken("60 images; at most 16 are supported")),
    at("a large picture", "pictures/large.png", TOO_LONG, files.png(900, 900)),
    video_at("mp4", "videos/a.mp4", clip(), Used((CLIP,))),
    video_at("mp4 named .png", "videos/a.png", clip(container="mov"), Used((CLIP,))),
    video_at("picture given as a video", "pictures/video.png", files.png(), NO_VIDEO),
    video_at("GIF given as a video", "videos/a.gif", files.animated("GIF"), NO_VIDEO),
    video_at("zero-byte video", "videos/empty.mp4", b"", broken("the file is empty")),
    video_at("text named .mp4", "videos/text.mp4", b"not here yet\n" * 40, NO_VIDEO),
    video_at("playlist", "videos/list.m3u8", b"#EXTM3U\n#EXTINF:4,\n../../secret.mp4\n#EXT-X-ENDLIST\n", NO_VIDEO),
    video_at("playlist named .mp4", "videos/list.mp4", b"ffconcat version 1.0\nfile ../../secret.mp4\n", NO_VIDEO),
    at("frames for a video", ["good.png", "good.png"], NO_VIDEO, data_type="video"),
    at("missing video", "videos/none.mp4", GONE, data_type="video"),
    at("once", "pictures/once.png", Used(), files.png(), problem="the same ?"),
    at("the same again", "pictures/copy.png", Left("duplicate", "as list/"), files.png(), problem="the same ?"),
]
PICTURES = [
    picture("empty", b"", broken("the file is empty|neither a path nor bytes")),
    picture("half a JPEG", files.encode(files.quarters(200, 200), "JPEG")[:900], CUT),
    picture("half a PNG", files.png()[:90], CUT),
    picture("half a WebP", files.encode(files.quarters(), "WEBP", lossless=True)[:-20], CUT),
    picture("half a GIF", files.encode(files.quarters(), "GIF")[:60], CUT),
    picture("half a TIFF", files.encode(files.quarters(), "TIFF")[:3000], CUT),
    picture("a PNG's signature", files.png()[:8], broken("not a picture|cut short")),
    picture("a flipped byte", files.flipped(files.png(), 0.5), CUT),
    picture("a newline in front", b"\n" + files.png(), NO_PICTURE),
    picture("1x1", files.encode(files.quarters().resize((1, 1))), broken("too small: 1x1 px")),
    picture("2x2", files.encode(files.quarters().resize((2, 2), 0)), Used((Seen("image", 56, 56, RED),))),
    picture("20,000x20,000", files.large(20_000, 20_000), broken("too large: 20000x20000 px, at most 100,000,000")),
    picture("12,000x10,000", files.large(12_000, 10_000), broken("too large: 12000x10000 px, at most 100,000,000")),
    picture("9,900x9,900 in 50 kB", files.large(9_900, 9_900), TOO_LONG),
    picture("comment that is a bomb", files.text_bomb(), broken("too large")),
    picture("very long and thin", files.png(900, 3), broken("too long and thin: 900x3 px")),
    picture("just long and thin", files.png(1900, 10), Used((Seen("image", 784, 28, RED),))),
    picture("print colours", files.cmyk(), Used((PICTURE,))),
    picture("16 bits", files.deep(), Used((Seen("image", 84, 56, (128, 128, 128)),))),
    picture("floats", files.floats(1.0), Used((Seen("image", 84, 56, (9, 9, 9)),))),
    picture("floats with NaN", files.floats(float("nan")), broken("pixels that are not finite")),
    picture("grey with alpha", files.encode(files.quarters(first=WHITE).convert("LA")), Used((CLEAR,))),
    picture("one bit", files.encode(files.quarters(first=BLACK).convert("1")), Used((Seen("image", 84, 56, BLACK),))),
    picture("clear palette", files.palette(), Used((CLEAR,))),
    picture("animated GIF", files.animated("GIF"), Used()),
    picture("animated WebP", files.animated("WEBP", lossless=True), Used()),
    picture("animated PNG", files.animated("PNG"), Used()),
    picture("TIFF of two pages", files.animated("TIFF"), Used()),
    picture("turned by EXIF", files.turned(), Used((Seen("image", 56, 84, BLUE),))),
    picture("bytes after the end", files.png() + b"\0" * 999, Used()),
    picture("HEIC", files.HEIC, NO_PICTURE),
    picture("AVIF", files.AVIF, NO_PICTURE),
    picture("PDF", files.PDF, NO_PICTURE),
    picture("PostScript", files.EPS, NO_PICTURE),
    picture("JPEG 2000", files.encode(files.quarters(), "JPEG2000"), NO_PICTURE),
    picture("icon", files.encode(files.quarters(), "ICO"), NO_PICTURE),
    picture("gzip", gzip.compress(files.png()), NO_PICTURE),
    picture("base64 instead of bytes", base64.b64encode(files.png()), NO_PICTURE),
    picture("an mp4", clip(), NO_PICTURE),
    Kind("path out of the root", {"images": [{"bytes": None, "path": "../secret.png"}]}, broken("leads out of")),
    Kind("somebody else's path", {"images": [{"bytes": files.png(), "path": "/home/else/a.png"}]}, Used()),
    Kind("null picture", {"images": [None]}, broken("^images: neither a path nor bytes but NoneType")),
    Kind("no pictures", {"images": []}, Used(())),
    Kind("null pictures", {"images": None, "videos": None}, Used(())),
    Kind("null text", {"problem": None}, broken("^problem: not text but NoneType")),
    Kind("extra numbers", {"extra": [1, 2]}, Used()),
]
VIDEOS = [
    video("WebM", clip(container="webm", codec="libvpx"), Used((CLIP,))),
    video("AVI", clip(container="avi", codec="mpeg4"), Used((CLIP,))),
    video("half an mp4", clip()[: len(clip()) // 2], broken("cut short or damaged: .*moov")),
    video("sound alone", files.sound(), broken("holds no video stream")),
    video("one frame", clip(1), Used((Seen("video", 140, 112, RED, 2),))),
    video("odd sides", clip(4, 141, 113, pixels="yuv444p"), Used((CLIP,))),
    video("1x1 video", clip(4, 1, 1, "matroska", "ffv1", "bgr0"), broken("too small: 1x1 px")),
    video("long and thin video", clip(4, 900, 4, "avi", "mpeg4"), broken("too long and thin: 900x4 px")),
    video(
        "video of many hours",
        files.video(container="matroska", codec="mpeg4", times_s=[0, 1, 20_000]),
        broken("too long: more than 14400 s"),
    ),
    video("video of many tokens", clip(128), TOO_LONG),
    video("turned video", clip(degrees=90), Used((Seen("video", 112, 140, GREEN, 4),))),
    video("video without its third frame", files.without_third_frame(), broken("damaged: the frame at 2.000 s")),
    video("PNG as a video", files.png(), NO_VIDEO),
    Kind(
        "marks in their order",
        {
            "problem": "is <video> after <image> or <image> ?",
            "images": [{"bytes": files.png()}, {"bytes": files.png(first=BLUE)}],
            "videos": [{"bytes": clip()}],
        },
        Used((CLIP, PICTURE, Seen("image", 84, 56, BLUE))),
    ),
]

LIST = Source("list", ".json", "video_r1", [*THOUGHTS, *PATHS, *IN_FILES], good_in_file)
TABLE = Source("table", ".parquet", "easyr1", [*PICTURES, *VIDEOS], good_in_bytes)


def lay_traps(root: Path) -> None:
    """Links, pipes and secrets beside and below the data's root; and files that are better not copied."""
    (root.parent / "secret.png").write_bytes(files.png(first=WHITE))
    (root.parent / "secret.mp4").write_bytes(files.video(first=WHITE))
    for folder in ("folder", "links", "many"):
        (root / folder).mkdir()
    for name, target in {
        "out.png": "../../secret.png",
        "outside": "../..",
        "zero.png": "/dev/zero",
        "nothing.png": "gone.png",
        "one.png": "two.png",
        "two.png": "one.png",
        "inside.png": "../good.png",
    }.items():
        (root / "links" / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    os.mknod(root / "socket.png", stat.S_IFSOCK | 0o600)
    for number in range(60):
        (root / "many" / f"{number}.png").write_bytes(files.encode(files.quarters(56, 56).resize((56, 56))))
    with (root / "sparse.png").open("wb") as sparse:
        sparse.truncate(8 * 2**30)

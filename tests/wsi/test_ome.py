"""OME-TIFF as QuPath, Bio-Formats and tifffile write it: levels in sub-images, labels and macros beside the slide."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from _slides import halved, smooth_picture

import wsi

IMAGE = smooth_picture(900, 700)
LEVELS = [IMAGE, halved(IMAGE), halved(halved(IMAGE))]
BESIDE = {"label image": (smooth_picture(300, 200, 3), 5.0), "macro image": (smooth_picture(400, 350, 4), 30.0)}


def physical(mpp):
    return {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}


def write_ome(path, *, beside="after", planar=False, sub=True, byteorder="<", **options):
    """Write the slide with its levels as sub-images, its label and its macro before or after it."""
    options = {"tile": (128, 128), "photometric": "rgb", **options}
    options["planarconfig"] = "separate" if planar else "contig"

    def stored(image):
        return np.moveaxis(image, -1, 0) if planar else image

    def others(tiff):
        for name, (image, mpp) in BESIDE.items():
            tiff.write(image, photometric="rgb", metadata={"axes": "YXS", "Name": name, **physical(mpp)})

    with tifffile.TiffWriter(path, ome=True, bigtiff=True, byteorder=byteorder) as tiff:
        if beside == "before":
            others(tiff)
        axes = {"axes": "CYX" if planar else "YXS", "Name": "slide", **physical(0.25)}
        tiff.write(stored(LEVELS[0]), subifds=2 if sub else 0, metadata=axes, **options)
        for level in LEVELS[1:] if sub else ():
            tiff.write(stored(level), subfiletype=1, **options)
        if beside == "after":
            others(tiff)
    return path


LOSSLESS = [
    {},
    {"beside": "before"},
    {"beside": "before", "compression": "deflate"},
    {"beside": "none", "compression": "zstd"},
    {"compression": "lzw", "predictor": True},
    {"compression": "jpeg2000"},
    {"compression": "deflate", "predictor": True, "byteorder": ">"},
    {"planar": True},
    {"planar": True, "compression": "deflate", "beside": "before"},
    {"tile": None},
    {"tile": None, "compression": "lzw", "rowsperstrip": 50},
    {"sub": False},
]


@pytest.mark.parametrize("options", LOSSLESS, ids=str)
def test_the_slide_is_found_with_all_its_levels_and_its_own_pixel_size(options, tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", **options)
    levels = LEVELS if options.get("sub", True) else LEVELS[:1]
    with wsi.open_slide(path) as slide:
        assert slide.reader.startswith("tifffile")
        assert [(level.height, level.width) for level in slide.levels] == [level.shape[:2] for level in levels]
        assert (slide.mpp.x, slide.mpp.y, slide.mpp.source) == (0.25, 0.25, "ome.PhysicalSizeX")
        for number, wanted in enumerate(levels):
            assert np.array_equal(slide.read(0, 0, wanted.shape[1], wanted.shape[0], level=number), wanted)
        assert (slide.read(890, 690, 20, 20)[10:] == 255).all()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("beside", ["before", "after"])
def test_jpeg_levels_are_those_that_tifffile_decodes(planar, beside, tmp_path):
    path = write_ome(
        tmp_path / "a.ome.tif", planar=planar, beside=beside, compression="jpeg", compressionargs={"level": 92}
    )
    with wsi.open_slide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert slide.reader.startswith("tifffile")
        (series,) = [one for one in tiff.series if one.name == "slide"]
        for number, level in enumerate(series.levels):
            truth = np.moveaxis(level.asarray(), 0, -1) if planar else level.asarray()
            ours = slide.read(0, 0, truth.shape[1], truth.shape[0], level=number)
            assert abs(ours.astype(int) - truth).max() <= 1
        assert slide.mpp.x == 0.25


def test_the_pixel_size_is_that_of_the_slide_not_of_its_label(tmp_path):
    """With two for this size, the file states none; where it leaves the slide out, its label is not taken for it."""
    path = write_ome(tmp_path / "a.ome.tif", beside="before", sub=False)
    xml = tifffile.tiffcomment(path)
    assert xml.index("label image") < xml.index('Name="slide"')
    cases = {
        xml.replace('SizeX="300"', 'SizeX="900"').replace('SizeY="200"', 'SizeY="700"'): None,
        xml.replace('PhysicalSizeXUnit="µm"', 'PhysicalSizeXUnit="&#181;m"'): 0.25,
        xml.replace('="0.25"', '="250"').replace('Unit="µm"', 'Unit="nm"'): 0.25,
    }
    for text, wanted in cases.items():
        tifffile.tiffcomment(path, text.encode())
        with wsi.open_slide(path, slide_mpp=None) as slide:
            assert slide.size == (900, 700)
            assert (slide.mpp is None) == (wanted is None), text
            if wanted:
                assert slide.mpp.x == pytest.approx(wanted)
    tifffile.tiffcomment(path, xml.replace('SizeX="900"', 'SizeX="901"').encode())
    with pytest.raises(wsi.UnreadableSlideError, match="leaves out the largest"):
        wsi.open_slide(path)


def test_pixels_in_another_file_are_never_looked_for_in_this_one(tmp_path):
    """The places that the description's other file would need mean nothing here."""
    other = tmp_path / "pixels.ome.tif"
    tifffile.imwrite(other, IMAGE, photometric="rgb", tile=(128, 128), metadata={"axes": "YXS", **physical(0.25)})
    uuid = "urn:uuid:" + "0" * 8 + "-0000-0000-0000-" + "0" * 12
    xml = tifffile.tiffcomment(other)
    start = xml.index("<TiffData")
    end = xml.index("</TiffData>") if "</TiffData>" in xml else xml.index("/>", start)
    data = f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="pixels.ome.tif">{uuid}</UUID></TiffData>'
    head = xml[:start] + data + xml[end:].split(">", 1)[1]
    first = tmp_path / "first.ome.tif"
    tifffile.imwrite(first, smooth_picture(64, 64), photometric="rgb", metadata=None, description=head.encode())
    with pytest.raises(wsi.UnreadableSlideError, match="another file"):
        wsi.open_slide(first)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 2, 64, 64, 3), {"imagej": True, "metadata": {"axes": "TZYXS"}}),
        ((5, 64, 64), {"imagej": True, "metadata": {"axes": "ZYX"}}),
        ((4, 64, 64), {"imagej": True, "metadata": {"axes": "CYX"}}),
        ((3, 64, 64, 3), {"ome": True, "photometric": "rgb", "metadata": {"axes": "ZYXS"}}),
        ((3, 64, 64), {"ome": True, "photometric": "minisblack", "metadata": {"axes": "CYX"}}),
    ],
)
def test_stacks_are_refused(shape, options, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros(shape, np.uint8), **options)
    with pytest.raises(wsi.NotBrightfieldError, match=r"several planes|separate grey channels"):
        wsi.open_slide(tmp_path / "stack.tif")

"""DICOM slides written for the tests, tile by tile, with pydicom alone: no reader of ours helps."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
JPEG, JPEG2000, JPEG_LS, RLE, PLAIN = (
    JPEGBaseline8Bit,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    ExplicitVRLittleEndian,
)


def write_dicom(
    folder: Path,
    levels: list[np.ndarray],
    *,
    mpp: float = 0.5,
    tile: int = 128,
    syntax: str = JPEG,
    photometric: str = "YBR_FULL_422",
    stream: str = "ycbcr",
    subsampled: bool = True,
    sparse: bool = False,
    left_out: tuple[int, ...] = (),
    paths: int = 1,
    planes: int = 1,
    parts: int = 1,
    icc: bytes | None = None,
) -> list[Path]:
    """Write one file per level (and per part of a concatenation) and return them, sharpest first.

    Args:
        folder: where.
        levels: RGB pictures, sharpest first.
        mpp: µm/px of level 0.
        tile: side of a frame, px.
        syntax: the transfer syntax.
        photometric: what the tag says.
        stream: the colours that JPEG frames really have: `ycbcr` or `rgb`; a JFIF marker goes with the first.
        subsampled: halve the chroma of JPEG frames.
        sparse: TILED_SPARSE, each frame with its place, in falling order.
        left_out: frames of level 0 that a sparse slide lacks.
        paths: optical paths, all with the same picture, but darker each time.
        planes: focal planes, likewise.
        parts: files that each level is cut into.
        icc: the colour profile.
    """
    uids = {name: generate_uid() for name in ("study", "series", "frame", "organization")}
    files: list[Path] = []
    for number, image in enumerate(levels):
        frames = _frames(image, tile, paths * planes)
        here = [n for n in range(len(frames)) if not (sparse and number == 0 and n in left_out)]
        if sparse:
            here = here[::-1]
        whole = generate_uid()
        for part in range(parts):
            mine = here[len(here) * part // parts : len(here) * (part + 1) // parts]
            data = [_encoded(frames[n], syntax, stream, subsampled, photometric) for n in mine]
            d = _dataset(image, uids, mpp * levels[0].shape[1] / image.shape[1], tile, photometric, icc, paths, planes)
            d.ImageType = [
                "ORIGINAL" if not number else "DERIVED",
                "PRIMARY",
                "VOLUME",
                "RESAMPLED" if number else "NONE",
            ]
            d.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
            d.NumberOfFrames = len(mine)
            d.InstanceNumber = 1 + number * parts + part
            if sparse:
                across = -(-image.shape[1] // tile)
                d.PerFrameFunctionalGroupsSequence = Sequence([_place(n, across, tile) for n in mine])
            if parts > 1:
                d.ConcatenationUID, d.SOPInstanceUIDOfConcatenationSource = whole, whole
                d.InConcatenationNumber, d.InConcatenationTotalNumber = part + 1, parts
                d.ConcatenationFrameOffsetNumber = len(here) * part // parts
            files.append(_save(d, folder / f"level-{number}-{part}.dcm", syntax, data))
    return files


def _frames(image: np.ndarray, tile: int, repeats: int) -> list[np.ndarray]:
    rows, columns = (-(-side // tile) for side in image.shape[:2])
    padded = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    cut = [padded[y * tile : y * tile + tile, x * tile : x * tile + tile] for y in range(rows) for x in range(columns)]
    return [(one // (n + 1)) for n in range(repeats) for one in cut]


def _encoded(frame: np.ndarray, syntax: str, stream: str, subsampled: bool, photometric: str) -> bytes:
    frame = np.ascontiguousarray(frame)
    if syntax == JPEG:
        options = {"level": 95, "subsampling": "420" if subsampled else "444"}
        return imagecodecs.jpeg8_encode(frame, colorspace="rgb", outcolorspace=stream, **options)
    if photometric == "YBR_FULL":
        frame = np.asarray(Image.fromarray(frame).convert("YCbCr"))
    if syntax == JPEG2000:
        mct = photometric != "YBR_FULL"
        return imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, mct=mct)
    if syntax == JPEG_LS:
        return imagecodecs.jpegls_encode(frame)
    return frame.tobytes()


def _dataset(image, uids, mpp, tile, photometric, icc, paths, planes) -> FileDataset:
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID = WSI_CLASS, generate_uid()
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = uids["study"], uids["series"], uids["frame"]
    d.Modality, d.PatientID, d.PatientName, d.ContainerIdentifier = "SM", "p", "p", "c"
    d.StudyDate = d.ContentDate = "20240101"
    d.StudyTime = d.ContentTime = "120000"
    d.AcquisitionDateTime = "20240101120000"
    d.VolumetricProperties, d.SpecimenLabelInImage, d.FocusMethod, d.ExtendedDepthOfField = "VOLUME", "NO", "AUTO", "NO"
    d.BurnedInAnnotation, d.LossyImageCompression = "NO", "00"
    d.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration = 3, photometric, 0
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 8, 8, 7, 0
    d.Rows = d.Columns = tile
    d.TotalPixelMatrixRows, d.TotalPixelMatrixColumns = image.shape[:2]
    d.TotalPixelMatrixFocalPlanes, d.NumberOfOpticalPaths = planes, paths
    d.ImagedVolumeWidth, d.ImagedVolumeHeight = image.shape[1] * mpp / 1000, image.shape[0] * mpp / 1000
    d.ImagedVolumeDepth = 1.0
    organization = Dataset()
    organization.DimensionOrganizationUID = uids["organization"]
    d.DimensionOrganizationSequence = Sequence([organization])
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.0", "40.0"
    d.TotalPixelMatrixOriginSequence = Sequence([origin])
    measures, shared, kind = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [f"{mpp / 1000:.7f}"] * 2, "0.001"
    if planes > 1:
        measures.SpacingBetweenSlices = "0.001"
    shared.PixelMeasuresSequence = Sequence([measures])
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared.WholeSlideMicroscopyImageFrameTypeSequence = Sequence([kind])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    d.OpticalPathSequence = Sequence([_optical_path(n, icc) for n in range(paths)])
    return d


def _optical_path(number: int, icc: bytes | None) -> Dataset:
    path, light = Dataset(), Dataset()
    path.OpticalPathIdentifier = str(number)
    light.CodeValue, light.CodingSchemeDesignator, light.CodeMeaning = "111744", "DCM", "Brightfield illumination"
    path.IlluminationTypeCodeSequence = Sequence([light])
    path.IlluminationWaveLength = 500.0
    if icc is not None:
        path.ICCProfile = icc + b"\0" * (len(icc) % 2)
    return path


def _place(n: int, across: int, tile: int) -> Dataset:
    frame, position, content, optical = Dataset(), Dataset(), Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = n % across * tile + 1
    position.RowPositionInTotalImagePixelMatrix = n // across * tile + 1
    position.XOffsetInSlideCoordinateSystem = "0.0"
    position.YOffsetInSlideCoordinateSystem = "0.0"
    position.ZOffsetInSlideCoordinateSystem = "0.0"
    content.DimensionIndexValues = [n % across + 1, n // across + 1]
    optical.OpticalPathIdentifier = "0"
    frame.PlanePositionSlideSequence = Sequence([position])
    frame.FrameContentSequence = Sequence([content])
    frame.OpticalPathIdentificationSequence = Sequence([optical])
    return frame


def _save(d: Dataset, path: Path, syntax: str, data: list[bytes]) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
    if syntax == RLE:
        from pydicom.pixels.encoders import RLELosslessEncoder

        size = int(d.Rows), int(d.Columns)
        options = {"rows": size[0], "columns": size[1], "samples_per_pixel": 3, "bits_allocated": 8, "bits_stored": 8}
        options |= {"pixel_representation": 0, "photometric_interpretation": "RGB", "planar_configuration": 0}
        data = [RLELosslessEncoder.encode(one, number_of_frames=1, **options) for one in data]
    d.PixelData = b"".join(data) if syntax == PLAIN else encapsulate(data)
    d["PixelData"].VR = "OB"
    d.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)
    return path

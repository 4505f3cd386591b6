"""Tiny pipelines by the name of their class."""

import importlib.util

from tests import families, padding_families, stateful_families
from tests.integration.models import recent
from tests.pipelines import tiny_edit, tiny_recent
from tests.pipelines.measure import Tiny


def _of(make, **options):
    return Tiny(lambda: make().pipeline, **options)


def _as(kind, make, **options):
    """A pipeline of the class `kind` with the parts of another one."""
    return Tiny(lambda: tiny_edit.of(kind, make), **options)


SAME_PARTS = {
    families.sd: (
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionSAGPipeline",
        "StableDiffusionPanoramaPipeline",
    ),
    families.sdxl: ("StableDiffusionXLPAGImg2ImgPipeline", "StableDiffusionXLPAGInpaintPipeline"),
    families.sd3: ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    families.flux: ("FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxKontextInpaintPipeline"),
    families.z_image: ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    recent.chroma: ("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    recent.qwen_image: ("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    recent.flux2_klein: ("Flux2KleinInpaintPipeline",),
}
"""Classes that have the parts of a tiny pipeline, by the function that makes it."""

TINY = {
    **{kind: _as(kind, make) for make, kinds in SAME_PARTS.items() for kind in kinds},
    "StableDiffusionPipeline": _of(families.sd),
    "StableDiffusionXLPipeline": _of(families.sdxl),
    "StableDiffusionXLImg2ImgPipeline": _of(families.sdxl_img2img),
    "StableDiffusionXLInpaintPipeline": _of(families.sdxl_inpaint),
    "StableDiffusion3Pipeline": _of(families.sd3),
    "FluxPipeline": _of(families.flux),
    "ZImagePipeline": _of(families.z_image),
    "Flux2KleinPipeline": Tiny(recent.flux2_klein),
    "ChromaPipeline": Tiny(recent.chroma),
    "AuraFlowPipeline": Tiny(recent.auraflow),
    "QwenImagePipeline": Tiny(recent.qwen_image),
    "CogView4Pipeline": _of(padding_families.cogview4),
    "OmniGenPipeline": _of(padding_families.omnigen, needs="torchvision"),
    "QwenImage21Pipeline": _of(padding_families.qwen_image21, needs="torchvision"),
    "HunyuanImagePipeline": _of(stateful_families.hunyuan_image),
    "KandinskyV22CombinedPipeline": _of(stateful_families.kandinsky_combined),
    "StableDiffusionXLPAGPipeline": _of(stateful_families.sdxl_pag),
    "SanaPipeline": Tiny(tiny_recent.sana, side=512),
    "SanaPAGPipeline": Tiny(lambda: tiny_recent.sana("SanaPAGPipeline"), side=512),
    "HiDreamImagePipeline": Tiny(tiny_recent.hidream),
    "HunyuanDiTPipeline": _of(stateful_families.hunyuan_dit),
    "PixArtSigmaPipeline": Tiny(tiny_recent.pixart, side=256),
    "FluxKontextPipeline": Tiny(tiny_edit.kontext),
    "QwenImageEditPipeline": Tiny(tiny_edit.qwen_edit, needs="torchvision"),
    "QwenImageEditPlusPipeline": Tiny(tiny_edit.qwen_edit_plus, needs="torchvision"),
    "JoyImageEditPipeline": Tiny(tiny_edit.joyimage_edit, needs="torchvision"),
    "DreamLitePipeline": Tiny(tiny_edit.dreamlite, needs="torchvision"),
    "Flux2KleinKVPipeline": Tiny(tiny_edit.flux2_klein),
    "Flux2Pipeline": Tiny(tiny_recent.flux2, needs="torchvision"),
    "Ideogram4Pipeline": Tiny(tiny_recent.ideogram4),
    "Kandinsky5T2IPipeline": Tiny(tiny_recent.kandinsky5, needs="torchvision"),
    "Krea2Pipeline": Tiny(tiny_recent.krea2),
    "ErnieImagePipeline": Tiny(tiny_recent.ernie_image),
    "BriaFiboPipeline": Tiny(tiny_recent.bria_fibo),
    "LongCatImagePipeline": Tiny(tiny_recent.longcat_image, needs="torchvision"),
    "OvisImagePipeline": Tiny(tiny_recent.ovis_image),
    "Lumina2Pipeline": Tiny(tiny_recent.lumina2),
    "NucleusMoEImagePipeline": Tiny(tiny_recent.nucleus_moe, needs="torchvision"),
    "PRXPipeline": Tiny(tiny_recent.prx, side=256),
}


def is_available(tiny):
    """Return whether a tiny pipeline can be built here."""
    return tiny.needs is None or importlib.util.find_spec(tiny.needs) is not None

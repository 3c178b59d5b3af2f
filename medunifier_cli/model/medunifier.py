"""The whole model, composition only. Legend of shapes: `qformer.py`, `generator.py`.

Parts of an objective whose weight is 0 are not built.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.data.contract import Batch
from medunifier_cli.model.norm import GlobalBatchNorm
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.model.qformer import LAYER_NORM_EPS, QFormer, initialise
from medunifier_cli.model.vit import ImageEncoder, pixels
from medunifier_cli.model.vqvae.generator import Generated, ImageGenerator, Sizes
from medunifier_cli.recipe.schema import PretrainRecipe

VISION_NORM_EPS = 1e-5  # PyTorch's default, as in BLIP-2's trainable norm


class ContrastHead(nn.Module):
    """H_itc, equations (8) and (9): linear, optionally batch-normalised, to the unit sphere."""

    def __init__(self, width: int, embed_width: int, norm: str) -> None:
        super().__init__()
        self.project = nn.Linear(width, embed_width)
        self.norm = GlobalBatchNorm(embed_width, affine=False) if norm == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., E], L2-normalised, fp32."""
        y = self.project(x)
        if self.norm is not None:
            y = self.norm(y.flatten(0, -2)).view(y.shape)
        return F.normalize(at_least_fp32(y), dim=-1)


class WordHead(nn.Module):
    """H_itg, equation (16): BERT's prediction head of width D, tied to the word embeddings."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, text_ND: Tensor, word_KD: Tensor) -> Tensor:
        """[N, D] and the word embeddings -> vocabulary logits [N, K]."""
        return F.linear(self.norm(F.gelu(self.transform(text_ND))), word_KD, self.bias)


class MedUnifier(nn.Module):
    """ViT, image-text encoder, the heads of ITC, ITM and ITG, and the image generator.

    Args:
        recipe: everything but the vocabulary.
        vocabulary: token ids of the tokenizer, [DEC] included.
        load: False leaves out the pretrained weights the recipe names.
    """

    def __init__(self, recipe: PretrainRecipe, vocabulary: int, load: bool = True) -> None:
        super().__init__()
        width, objectives = recipe.model.qformer.width, recipe.objectives
        self.recipe = recipe
        self.vit = ImageEncoder(recipe.model.vit, recipe.data.image_size, load)
        self.vision_norm = nn.LayerNorm(self.vit.width, eps=VISION_NORM_EPS)
        self.qformer = QFormer(recipe.model.qformer, self.vit.width, vocabulary, recipe.text.max_tokens)
        if objectives.itc:
            self.image_head = ContrastHead(width, objectives.embed_width, objectives.embed_norm)
            self.text_head = ContrastHead(width, objectives.embed_width, objectives.embed_norm)
            self.temperature = nn.Parameter(torch.tensor(objectives.temperature))
        if objectives.itm:
            self.match_head = nn.Linear(width, 2)
        if objectives.itg:
            self.word_head = WordHead(width, vocabulary)
        for name, head in self.named_children():
            if name.endswith("_head"):
                initialise(head, recipe.model.qformer.init_std)
        if objectives.tig:
            sizes = Sizes(
                recipe.data.image_size,
                self.vit.patch_size,
                self.vit.width,
                width,
                recipe.model.qformer.queries,
            )
            self.generator = ImageGenerator(recipe.model.generator, sizes)
        if load and recipe.model.qformer.weights != "random":
            from medunifier_cli.checkpoint.convert import load_bert

            load_bert(self, recipe.model.qformer.weights)

    def place(self, device: torch.device) -> MedUnifier:
        """Move to a device; on a GPU a frozen image encoder runs in bf16."""
        if self.recipe.model.vit.frozen and device.type == "cuda":
            self.vit.vit.to(torch.bfloat16)
        return self.to(device)

    def look(self, image_BCHW: Tensor) -> Tensor:
        """Pixels in [0, 1] -> f_v [B, 1 + V, D_v] after the trainable norm."""
        features: Tensor = self.vision_norm(self.vit(image_BCHW))
        return features

    def reconstruct(self, batch: Batch) -> Generated:
        """The images of a batch through their codes, with the codes."""
        features = self.look(pixels(batch.image_B1HW))
        memory = self.qformer.read_image(features)
        text_cls = self.qformer.read_text(batch.text)
        made: Generated = self.generator(memory.query_BQD, features[:, 1:], text_cls)
        return made

    def match(self, query_MQD: Tensor) -> Tensor:
        """Equation (14): two logits per query, averaged over queries, fp32 [M, 2]."""
        logits: Tensor = at_least_fp32(self.match_head(query_MQD)).mean(dim=1)
        return logits

    def word_logits(self, text_ND: Tensor) -> Tensor:
        """[N, D] -> [N, vocabulary]."""
        logits: Tensor = self.word_head(text_ND, self.qformer.word.weight)
        return logits

"""The small CLIP itself: its architecture, its loss, and how it is trained and looked at."""

import importlib.resources
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.backbones import ImageFeatures
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.value_projection import attention_pool, attention_pool_tokens
from dclip.backbones.weights import load_strictly, read_state_dict
from dclip.data.pixels import normalise
from dclip.logits import similarity_maps, zero_shot_scores
from dclip.methods.linear_probe import fit_linear_probe
from dclip.metrics.average_precision import mean_average_precision
from dclip.metrics.similarity import inter_class_cosine
from dclip.prompts import encode_class_names
from dclip.texts import embedded_stem
from dclip.world import shapes
from dclip.world.curriculum import CURRICULA, Pairs, Phase, draw_pairs, draw_scenes

INITIAL_LOGIT_SCALE = 50.0
MAX_LOGIT_SCALE = 100.0


def build_model(seed: int, name: str = "tiny") -> open_clip.CLIP:
    """A small CLIP with random weights.

    Args:
        seed: Of the weights.
        name: ``"tiny"`` or ``"tiny-vit"``, in ``dclip/world/tiny_clip.json`` and so on.
    """
    folder = importlib.resources.files("dclip.world")
    config = (folder / f"{embedded_stem(name)}.json").read_text()
    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(config))
    with torch.no_grad():
        # Texts that differ in one word should differ from the first step on.
        model.token_embedding.weight.mul_(5)
        # With a high scale small differences will do, and texts stay as alike as in CLIP.
        model.logit_scale.fill_(math.log(INITIAL_LOGIT_SCALE))
    return model.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------
# Loss and encoders
# ---------------------------------------------------------------------------------------------


def contrastive_loss(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    caption_of: Int[Tensor, " images"],
    *,
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""CLIP's symmetric cross-entropy, pairs of equal captions being positives of each other.

    Among B pairs let :math:`P_i` be those with the caption of pair i. With
    :math:`s_{ij} = \tau \cos(x_i, t_j)`,

    .. math::
        L = -\frac{1}{2B} \sum_i \frac{1}{|P_i|} \sum_{j \in P_i} \left[
            \log \frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}} + \log \frac{e^{s_{ji}}}{\sum_k e^{s_{ki}}}
        \right]

    Equal captions have equal features, so each distinct caption is encoded once and counted as
    often as it occurs. With no caption twice this is CLIP's loss.

    Args:
        image_features: One per pair, of any length.
        text_features: One per distinct caption, of any length.
        caption_of: Row of ``text_features`` that belongs to each image; every row occurs.
        logit_scale: Multiplier :math:`\tau` of the cosines, above 0.

    Returns:
        The mean over pairs and over both directions, in nats.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        ICML 2021, arXiv:2103.00020; Khosla et al., "Supervised Contrastive Learning", NeurIPS
        2020, arXiv:2004.11362, equation 2, for the mean over positives.
    """
    images = F.normalize(image_features, dim=1)
    texts = F.normalize(text_features, dim=1)
    logits = logit_scale * images @ texts.T
    counts = torch.bincount(caption_of, minlength=len(texts)).to(logits.dtype)
    own = logits.gather(1, caption_of[:, None]).squeeze(1)
    to_texts = torch.logsumexp(logits + counts.log(), dim=1) - own
    # Sum over the images of a caption of the mean over the same images: each image once.
    to_images = torch.logsumexp(logits, dim=0)[caption_of] - own
    return 0.5 * (to_texts.mean() + to_images.mean())


def encode_windows(
    model: open_clip.CLIP, images: Float[Tensor, "images 3 height width"], *, top: int, left: int
) -> Float[Tensor, "images dim"]:
    """Global embeddings of images that are a window of the full canvas.

    Args:
        model: Its image tower is a ResNet or a ViT.
        images: Normalised; sides are multiples of the stride, at most the tower's own.
        top: Row of the positional embedding at which the window begins.
        left: Column at which it begins.
    """
    tower = model.visual
    if isinstance(tower, VisionTransformer):
        patches = tower.conv1(images)
        positions = _window(tower.positional_embedding, patches, top, left)
        patches = patches.flatten(2).transpose(1, 2)
        class_token = tower.class_embedding.expand(len(images), 1, -1)
        tokens = tower.ln_pre(torch.cat([class_token, patches], dim=1) + positions)
        embedding: Tensor = tower.ln_post(tower.transformer(tokens)[:, 0]) @ tower.proj
        return embedding
    feature_map = tower.stem(images)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        feature_map = layer(feature_map)
    pool = tower.attnpool
    positions = _window(pool.positional_embedding, feature_map, top, left)
    return attention_pool(attention_pool_tokens(feature_map, positions), pool)


def _window(
    positions: Float[Tensor, "tokens dim"],
    feature_map: Float[Tensor, "images dim rows columns"],
    top: int,
    left: int,
) -> Float[Tensor, "window dim"]:
    """The first position, and those of the window that a feature map has."""
    rows, columns = feature_map.shape[-2:]
    whole = math.isqrt(len(positions) - 1)
    grid = positions[1:].view(whole, whole, -1)
    window = grid[top : top + rows, left : left + columns].flatten(0, 1)
    return torch.cat([positions[:1], window])


def _grid(model: open_clip.CLIP) -> tuple[int, int]:
    """Locations along a side of the whole canvas, and pixels from one to the next."""
    tower = model.visual
    if isinstance(tower, VisionTransformer):
        return tower.grid_size[0], tower.patch_size[0]
    return math.isqrt(len(tower.attnpool.positional_embedding) - 1), 32


def encode_tokens(
    model: open_clip.CLIP, tokens: Int[Tensor, "texts tokens"]
) -> Float[Tensor, "texts dim"]:
    """Text embeddings of token rows cut behind the longest text.

    The transformer is causal, so what is cut off (padding) could not have changed the result.
    """
    length = tokens.shape[1]
    states = model.token_embedding(tokens) + model.positional_embedding[:length]
    states = model.transformer(states, attn_mask=model.attn_mask[:length, :length])
    ends = model.ln_final(states)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    features: Tensor = ends @ model.text_projection
    return features


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


def fit(
    model: open_clip.CLIP,
    pairs: Pairs,
    phase: Phase,
    *,
    tokenize: Callable[[list[str]], Int[Tensor, "texts tokens"]],
    seed: int,
    log: Callable[[str], None],
) -> list[float]:
    """Train on the pairs of one phase, in place.

    Args:
        model: The model, in float32, on the device that computes.
        pairs: What `draw_pairs` drew for this phase.
        phase: Steps, batch size and learning rate.
        tokenize: Captions to token rows.
        seed: Of the order of the pairs, the flips and the windows.
        log: Takes a line now and then.

    Returns:
        The loss of every step.
    """
    device = model.logit_scale.device
    tokens = tokenize(list(pairs.captions))
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())].to(device)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in _pixel_statistics()
    )
    whole, stride = _grid(model)
    places = whole - phase.side // stride + 1  # of a window, along one axis
    spare = pairs.images.shape[-1] - phase.side  # pixels that a crop leaves out, along one axis

    # Rows of the token table that no caption uses keep their initial values: no decay there.
    weights = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [
        {"params": weights, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.98), fused=True)
    warm_up = min(phase.warm_up, phase.steps // 4 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up, 0.02 + 0.98 * _half_cosine(step, phase.steps)),
    )
    generator = torch.Generator().manual_seed(seed)
    order = _endless_order(len(pairs.images), phase.batch, generator)
    losses: list[float] = []
    start = time.perf_counter()
    model.train()
    for step in range(1, phase.steps + 1):
        chosen = next(order)
        pixels = pairs.images[chosen.to(pairs.images.device)].to(device)
        if spare:
            down, right = torch.randint(spare + 1, (2,), generator=generator).tolist()
            pixels = pixels[..., down : down + phase.side, right : right + phase.side]
        images = (pixels.float() / 255 - mean) / std
        images = images.contiguous(memory_format=torch.channels_last)
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(3)
        top, left = torch.randint(places, (2,), generator=generator).tolist()
        captions, caption_of = torch.unique(pairs.caption_of[chosen], return_inverse=True)
        loss = contrastive_loss(
            encode_windows(model, images, top=top, left=left),
            encode_tokens(model, tokens[captions.to(device)]),
            caption_of.to(device),
            logit_scale=model.logit_scale.exp(),
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        losses.append(loss.item())
        if step % 100 == 0 or step == phase.steps:
            recent = losses[-100:]
            rate = step * phase.batch / (time.perf_counter() - start)
            log(
                f"{phase.name}: step {step}/{phase.steps}, loss {sum(recent) / len(recent):.3f},"
                f" logit scale {model.logit_scale.exp().item():.1f}, {rate:.0f} images/s"
            )
    model.eval()
    return losses


def _half_cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def _endless_order(
    length: int, batch: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " batch"]]:
    """Batches of indices in a new order every pass; what does not fill a batch is left out."""
    assert batch <= length, f"a batch of {batch} out of {length} pairs"
    while True:
        order = torch.randperm(length, generator=generator)
        for start in range(0, length - batch + 1, batch):
            yield order[start : start + batch]


def _pixel_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """CLIP's channel means and deviations."""
    return open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------


def evaluate(
    model: open_clip.CLIP, *, seed: int, sizes: dict[str, int], workers: int, name: str = "tiny"
) -> dict[str, float]:
    """What DCLIP will find in the model.

    Args:
        model: In eval mode.
        seed: Of the world.
        sizes: How many images of ``train``, ``test`` and ``single`` to use, from the first on.
        workers: Processes that draw.
        name: Of the model.

    Returns:
        ``single/top1``: zero-shot accuracy on single objects; ``test/map_zero_shot``: of the global
        embedding; ``test/map_zero_shot_local``: of the best location; ``test/map_linear_probe``: of
        a linear probe on local features; ``text/inter_class_cosine``.
    """
    backbone = OpenCLIPBackbone(model, open_clip.SimpleTokenizer(), name=name)
    features: dict[str, ImageFeatures] = {}
    labels: dict[str, Tensor] = {}
    for split, size in sizes.items():
        batches = []
        answers = []
        for images, vectors in draw_scenes(split, size, seed=seed, workers=workers):
            pixels = normalise(images.permute(0, 2, 3, 1), backbone.mean, backbone.std)
            found = backbone.encode_images(pixels)
            batches.append(ImageFeatures(found.embedding.cpu(), found.local.cpu()))
            answers.append(vectors)
        features[split] = ImageFeatures(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        labels[split] = torch.cat(answers)

    texts = encode_class_names(backbone, shapes.CLASS_NAMES).cpu()
    single = zero_shot_scores(features["single"].embedding, texts)
    global_scores = zero_shot_scores(features["test"].embedding, texts)
    local_scores = similarity_maps(features["test"].local, texts).amax(dim=2)
    train_local, train_labels = features["train"].local, labels["train"]

    def passes() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(torch.split(train_local, 100), torch.split(train_labels, 100), strict=True)

    probe = fit_linear_probe(
        passes, embed_dim=backbone.embed_dim, num_classes=len(shapes.CLASS_NAMES)
    )
    with torch.no_grad():
        probe_scores = probe(features["test"].local)
    is_right = single.argmax(dim=1) == labels["single"].argmax(dim=1)
    return {
        "single/top1": is_right.float().mean().item(),
        "test/map_linear_probe": mean_average_precision(probe_scores, labels["test"]),
        "test/map_zero_shot": mean_average_precision(global_scores, labels["test"]),
        "test/map_zero_shot_local": mean_average_precision(local_scores, labels["test"]),
        "text/inter_class_cosine": inter_class_cosine(texts),
    }


def write_weights(model: open_clip.CLIP, path: Path, metadata: dict[str, str]) -> None:
    """Write a model's state dict in half precision, renamed into place when complete."""
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(state, part, metadata=metadata)
    part.replace(path)


def pretrain(
    output: Path,
    *,
    model_name: str = "tiny",
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
    curriculum: Sequence[Phase] | None = None,
    sizes: dict[str, int] = shapes.SPLIT_SIZES,
    log: Callable[[str], None],
) -> dict[str, float]:
    """Draw, train through the curriculum, write the weights, report on what was written.

    Args:
        output: The ``.safetensors`` file to write.
        model_name: ``"tiny"`` or ``"tiny-vit"``.
        seed: Of the world, the weights and the order of the pairs.
        workers: Processes that draw images.
        device: Where the model is trained.
        curriculum: Phases, in order; that of the model if None.
        sizes: Images of every split for the report.
        log: Takes lines of progress.

    Returns:
        What `evaluate` returns for the written weights, and ``seconds`` for everything.
    """
    start = time.perf_counter()
    tokenizer = open_clip.SimpleTokenizer()
    model = build_model(seed, model_name).to(device)
    if curriculum is None:
        curriculum = CURRICULA[model_name]

    def tokenize(texts: list[str]) -> Int[Tensor, "texts tokens"]:
        tokens: Tensor = tokenizer(texts, context_length=model.context_length)
        return tokens

    chosen = "" if model_name == "tiny" else f"--model {model_name} "
    metadata = {
        "format": "pt",
        "command": f"python -m dclip.world.pretraining {chosen}--seed {seed}"
        f" --output {output.name}",
        "seed": str(seed),
    }
    firsts = itertools.accumulate((phase.pairs for phase in curriculum), initial=0)
    for number, (phase, first) in enumerate(zip(curriculum, firsts, strict=False)):
        log(f"{phase.name}: drawing {phase.pairs} pairs")
        pairs = draw_pairs(phase, first, seed=seed, workers=workers)
        fit(model, pairs, phase, tokenize=tokenize, seed=seed + number, log=log)
        del pairs
        write_weights(model, output, {**metadata, "phase": phase.name})
    load_strictly(model, read_state_dict(output), source=str(output))
    log(f"wrote {output.name}; evaluating")
    report = evaluate(model, seed=seed, sizes=sizes, workers=workers, name=model_name)
    return {**report, "seconds": time.perf_counter() - start}

"""The words of a model card that are the same for every run."""

from __future__ import annotations

WARNING = "**Not for diagnosis.** This is a research model, not a medical device."

HOW_TO = """\
Install the Python package `medunifier`, which has the model's code and the command `mu`; none is loaded from
the hub.

```python
import medunifier_cli.hub
from transformers import AutoModel, AutoProcessor

# FOLDER: this folder, or its name on the hub
model, processor = AutoModel.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)
inputs = processor(images=["film.png"], text=["Large left pleural effusion.", "No acute disease."])
model(**inputs).logits_per_image.softmax(dim=1)  # [1, 2]
```

Every verb of `mu` takes the folder as a run: `mu report film.png --run FOLDER`, `mu finetune RECIPE --run
FOLDER`."""

INTENDED = """\
Research on chest radiographs and their reports: retrieval, zero-shot classification and fine-tuning, drafts
of reports, synthetic radiographs, and the comparison of such methods. Not for decisions about patients, not
for triage, not for the identification of persons, and not for texts or images that are presented as real
ones."""

LIMITS = """\
- Results hold for data like the training data. Other scanners, views, ages, languages and populations were
  not measured unless a table below says so.
- Reports and labels are guesses that read well. They name findings that are absent, leave out findings that
  are there, and confuse sides.
- Images other than frontal chest radiographs give answers too, which mean nothing.
- A model can repeat what it was trained on: `mu score --copies` searches synthetic images for copies.
- Grey levels are used as they are stored or windowed; laterality markers and devices may decide an answer."""

CITATION = """\
```bibtex
@inproceedings{zhang2025medunifier,
  title     = {MedUnifier: Unifying Vision-and-Language Pre-training on Medical Data with Vision
               Generation Task using Discrete Visual Representations},
  author    = {Zhang, Ziyang and Yu, Yang and Chen, Yucheng and Yang, Xulei and Yeo, Si Yong},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2025}
}
```

The paper describes the method. This model was trained with `mu`, an implementation of it that is not the
authors' code."""

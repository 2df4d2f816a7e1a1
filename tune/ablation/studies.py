"""The named ablations: the papers' tables and figures, which part of the method matters, and what the papers did not ask.

A study of one's own is written the same way, in a file of one's own: `python tune/ablate.py my_study.py` runs every Study
that it defines.
"""

from __future__ import annotations

from typing import Any

from tune.ablation import figures, single_units, tables, transfer
from tune.ablation.algebra import FULL, Case, case, leave_one_out, product, sweep
from tune.ablation.study import Column, Study, dimensions, edits, edits_and_choice, gallery, representation

R2 = Column("neural_r2", "R², %", 100, 2)
RMSE = Column("neural_rmse", "RMSE × 100", 100, 2)
MIG = Column("mig", "MIG, %", 100, 2)
MIG_SHUFFLED = Column("mig_shuffled", "MIG, shuffled, %", 100, 2)
GROUP_MIG = Column("group_mig", "group MIG, %", 100, 2)
GROUP_MIG_SHUFFLED = Column("group_mig_shuffled", "group MIG, shuffled, %", 100, 2)
SUPERVISED = Column("supervised_r2", "R² of groups 1 and 2, %", 100, 2)
UNSUPERVISED = Column("unsupervised_r2", "R² of the other groups, %", 100, 2)
SELECTIVITY, REALISM = Column("selectivity", "selectivity"), Column("realism", "realism")
POSE, CATEGORY = Column("move_pose_group1", "group 1 moves pose"), Column("move_category_group2", "group 2 moves category")
LEAKS = (
    Column("leak_category_group1", "group 1 leaks category (less is better)"),
    Column("leak_pose_group2", "group 2 leaks pose (less is better)"),
)
DISTANCE = Column("training_distance", "distance to training pictures")
EDITS = (SELECTIVITY, REALISM, DISTANCE, POSE, CATEGORY, *LEAKS)

UNSUPERVISED_VAE: dict[str, Any] = {"vae.supervision_weight": 0.0}
WITHOUT_PC: dict[str, Any] = {"vae.pc_weight": 0.0}
VAES = (
    *case("standard VAE", UNSUPERVISED_VAE | WITHOUT_PC),
    *case("without supervision", UNSUPERVISED_VAE),
    *case("without PC", WITHOUT_PC),
    FULL,
)
BOTH = (0, 1)
"""The first two subjects of a data set; the papers' M1 and M2."""
_MIG = (
    "The papers' MIG comes from code that does not bin its factors; ours bins both and corrects for the bias. It takes single "
    "dimensions; group MIG asks whole groups, which is what the method disentangles. Shuffled: the same with labels that mean "
    "nothing."
)

_GRADIENT = {"synthesis.guidance": "gradient"}
_KEPT: dict[str, Any] = {"synthesis.keep_weight": 0.05}
_ALONE: dict[str, Any] = {"synthesis.keep_weight": 0.0}
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "MI, keeping the rest (ours)": (_KEPT, (5.0, 20.0, 80.0)),
    "MI": (_ALONE, (5.0, 20.0, 80.0)),
    # A gradient asks the critic about blurred estimates, so this one has seen some.
    "MI, by its gradient (A, B)": ({**_ALONE, **_GRADIENT, "critic.training_images": "pool"}, (1.0, 5.0, 20.0)),
    "likelihood, keeping the rest": ({**_KEPT, "synthesis.method": "likelihood"}, (5.0, 20.0, 80.0)),
    "likelihood, without MI (B)": ({**_ALONE, "synthesis.method": "likelihood"}, (5.0, 20.0, 80.0)),
    "activation, without MI (A)": ({**_ALONE, "synthesis.method": "activation"}, (5.0, 20.0, 80.0)),
    "AP-LR": ({**_ALONE, "synthesis.method": "linear_activation", **_GRADIENT}, (1.0, 5.0, 20.0)),
    "AP-CFG": ({"synthesis.method": "classifier_free"}, (1.0, 3.0, 9.0)),
    "SLT": ({"synthesis.method": "decoder"}, (0.25, 0.5, 1.0)),
}
"""The rivals, by their names in the papers, with the guidance scales at which each is tried: their units differ.

Keeping the rest is ours and can be done with any criterion; the best of the rivals is tried with it, too.
"""

RIVALS = tuple(
    Case(f"{name}, γ = {scale:g}", {**changes, "synthesis.guidance_scale": scale, "synthesis.sweep_scales": scales})
    for name, (changes, scales) in METHODS.items()
    for scale in scales
)

COMPONENTS = leave_one_out(
    {
        "supervision": UNSUPERVISED_VAE,
        "PC": WITHOUT_PC,
        "guidance": {"synthesis.guidance_scale": 0.0},
        "inversion corrections": {"synthesis.inversion_corrections": 0},
        "keeping the rest": _ALONE,
        "dequantisation": {"synthesis.dequantisation": 0.0},
        "embedding dropout": {"critic.embedding_dropout": 0.0},
    }
)

STUDIES = (
    Study(
        "table1",
        "What do supervision and the partial correlation cost in reconstruction?",
        VAES,
        representation,
        (R2,),
        subjects=BOTH,
        published={
            ("M1", "standard VAE", "neural_r2"): 78.62,
            ("M1", "without supervision", "neural_r2"): 76.90,
            ("M1", "without PC", "neural_r2"): 77.30,
            ("M1", "full", "neural_r2"): 76.58,
            ("M2", "standard VAE", "neural_r2"): 83.72,
            ("M2", "without supervision", "neural_r2"): 82.39,
            ("M2", "without PC", "neural_r2"): 82.21,
            ("M2", "full", "neural_r2"): 81.86,
        },
        figures=(figures.intervals,),
    ),
    Study(
        "table2",
        "Are the full method's latents more disentangled than the standard VAE's, at equal reconstruction?",
        (*VAES[:1], FULL),
        representation,
        (R2, RMSE, MIG, MIG_SHUFFLED, GROUP_MIG, GROUP_MIG_SHUFFLED),
        base="standard VAE",
        subjects=BOTH,
        published={
            ("M1", "standard VAE", "neural_r2"): 78.62,
            ("M1", "full", "neural_r2"): 76.58,
            ("M1", "standard VAE", "neural_rmse"): 48.49,
            ("M1", "full", "neural_rmse"): 50.47,
            ("M1", "standard VAE", "mig"): 33.27,
            ("M1", "full", "mig"): 44.23,
            ("M2", "standard VAE", "neural_r2"): 83.72,
            ("M2", "full", "neural_r2"): 81.86,
            ("M2", "standard VAE", "neural_rmse"): 40.77,
            ("M2", "full", "neural_rmse"): 43.44,
            ("M2", "standard VAE", "mig"): 28.65,
            ("M2", "full", "mig"): 49.85,
        },
        remark=_MIG,
        figures=(figures.intervals,),
    ),
    *(
        Study(
            name,
            f"How much of the {which} subject's variance do supervised and unsupervised latents explain?",
            (FULL,),
            representation,
            (R2, SUPERVISED, UNSUPERVISED),
            base=None,
            subjects=(place,),
            published={(subject, "full", metric): value for metric, value in values.items()},
            remark="Explained by ridge regression on those latents alone, so the two parts need not sum to the whole.",
            figures=(figures.intervals,),
        )
        for name, place, which, subject, values in (
            ("table3", 0, "first", "M1", {"neural_r2": 76.13, "supervised_r2": 32.50, "unsupervised_r2": 20.88}),
            ("table4", 1, "second", "M2", {"neural_r2": 71.82, "supervised_r2": 28.11, "unsupervised_r2": 19.63}),
        )
    ),
    Study(
        "figure1",
        "What do single units tell about pose and category, and do they tell them apart?",
        (FULL,),
        representation,
        (R2,),
        base=None,
        subjects=BOTH,
        remark="Units are decoded from their responses; the fitted VAE beside them only shows what is to be explained.",
        figures=(single_units.unit_pictures,),
        tables=(single_units.unit_tables,),
    ),
    Study(
        "figure4",
        "What does each group encode, at growing guidance scales, towards a target and along its own dimensions?",
        (FULL,),
        gallery,
        EDITS,
        base=None,
        figures=(figures.galleries,),
    ),
    Study(
        "figure5",
        "Does guidance by mutual information edit better than its rivals, where their edits are objects?",
        RIVALS,
        edits_and_choice,
        EDITS,
        base=None,
        remark="Scales of different methods have different units, so rows are not compared one by one. Guidance by remembered "
        "pictures (MI, likelihood, activation) settles near training pictures, which helps realism: see the distance. AP-LR "
        "and MI by its gradient have the sampler of the papers instead. AP-LR reads pixels where the critic's encoder is a CNN, "
        "which no fit but the critic's own could share. AP-CFG continues the unconditional denoiser for a while, and only its "
        "correction of the remembered pictures knows the latents.",
        figures=(figures.trade_off, figures.aligned_edits),
        tables=(tables.at_its_best_scale,),
    ),
    *(
        Study(
            name,
            f"What do pairs of dimensions within group {group} ({what}) encode, and is it the same for every object?",
            (FULL,),
            dimensions(group),
            EDITS,
            base=None,
            figures=(figures.dimension_pairs,),
            remark="These edits are looked at: which attribute a pair moves has no label to score it by.",
        )
        for name, group, what in (("figure6", 3, "unsupervised"), ("figure7", 2, "category"))
    ),
    Study(
        "figure8",
        "How do responses and their reconstructions compare, for single stimuli?",
        (FULL,),
        representation,
        (R2,),
        base=None,
        subjects=BOTH,
        remark="Responses are averages over repetitions of a stimulus, as in the data set, not single trials.",
        figures=(figures.reconstructions,),
    ),
    Study(
        "figure9",
        "How many groups? The same total number of dimensions is not kept: each group has its rank.",
        sweep("vae.group_count", (2, 3, 4, 6), "G"),
        edits,
        (R2, GROUP_MIG, GROUP_MIG_SHUFFLED, *EDITS),
        base="G = 4",
        figures=(figures.intervals, figures.aligned_edits),
    ),
    Study(
        "figure10",
        "How many negatives does InfoNCE need?",
        sweep("critic.infonce_batch", (16, 64, 256), "B"),
        edits,
        EDITS,
        base="B = 64",
        remark="All critics see the same number of images, or a few more where that would be too few steps, so smaller batches "
        "take more steps of the same size: B is not compared at equal optimisation.",
        figures=(figures.intervals, figures.aligned_edits),
    ),
    Study(
        "components",
        "Which part of the method matters?",
        COMPONENTS,
        edits,
        (GROUP_MIG, *EDITS),
        remark="Without supervision groups 1 and 2 mean neither pose nor category, so selectivity is lost by definition. What "
        "guides, and how, is compared in figure5: its scale has other units there.",
        figures=(figures.intervals, figures.aligned_edits),
    ),
    Study(
        "keeping",
        "Should guidance also keep what the other groups say of the stimulus itself?",
        sweep("synthesis.keep_weight", (0.0, 0.05, 0.15, 0.5), "w"),
        edits_and_choice,
        (*EDITS, Column("validation/selectivity", "selectivity, validation pairs")),
        base="w = 0",
        remark="The papers leave keeping the rest to the inverted state alone: w = 0. Validation pairs say which w to choose.",
        figures=(figures.intervals, figures.aligned_edits),
    ),
    Study(
        "dose",
        "How strong may an edit be before it stops being an object?",
        product(
            sweep("synthesis.edit_step", (0.45, 0.6, 0.75), "t′"),
            sweep("synthesis.guidance_scale", (1.0, 5.0, 20.0, 80.0), "γ"),
        ),
        edits,
        EDITS,
        base=None,
        figures=(figures.dose, figures.aligned_edits),
        tables=(tables.region_of_realism,),
    ),
    Study(
        "transfer",
        "Do edits of one subject's groups show another subject's critic what that subject's groups encode?",
        (FULL,),
        edits,
        EDITS,
        base=None,
        subjects=BOTH,
        least_subjects=2,
        figures=(transfer.transfer_pictures,),
        tables=(transfer.transfer_tables,),
    ),
    Study(
        "stability",
        "Do groups keep their meaning when the fit is repeated with another seed?",
        VAES,
        representation,
        (GROUP_MIG, GROUP_MIG_SHUFFLED),
        tables=(tables.similarity_over_seeds,),
    ),
)
"""In the order in which `all` runs them."""

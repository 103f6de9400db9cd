"""The first page of help, and words that no command has: answered without torch. `--help all` lists every option."""

from difflib import get_close_matches

TRAINING = """\
gsq fit --config RECIPE [options]: trains a tokenizer.

  --config, -c NAME              recipe (f8.yaml, f16.yaml, f32.yaml, quickstart.yaml) or a file of your own; again for
                                 an overlay, such as --config ablations/t7_nld_nv.yaml
  --data.root FOLDER             images: a folder with train/ and val/, an archive, shards, …
  --data.val_share X             share of the images, such as 0.02, to hold out for validation if there is no val/
  --data.image_size N            side of the square images, in pixels
  --data.global_batch_size N     images per step, over all devices and accumulated batches
  --data.num_workers N           worker processes per device
  --model.accumulate_batches N   split the batch of a device into N, if it does not fit in memory
  --model.tokenizer.base_channels N
                                 width of the network
  --model.tokenizer.quantizer CLASS
                                 GroupedSphericalQuantizer, or FSQ, LFQ, BSQ, ResidualVQ, SimVQ
  --model.tokenizer.quantizer.codebook_size N
                                 number of codes
  --model.tokenizer.quantizer.num_groups N
                                 groups of channels, each with an index of its own
  --model.discriminator CLASS    DINODiscriminator, PatchDiscriminator, StyleGANDiscriminator, ProjectedDiscriminator;
                                 null: GSQ-VAE
  --model.tokenizer_optimizer.lr X
                                 learning rate; --model.discriminator_optimizer.lr likewise
  --trainer.max_steps N          generator steps
  --trainer.devices N            GPUs of this machine, all by default; --trainer.num_nodes N machines
  --trainer.precision WORD       bf16-mixed or 32-true
  --trainer.logger.name NAME     the run goes to runs/NAME/version_N
  --auto_resume BOOL             resume the newest run of the same config; true in the recipes
  --ckpt_path FILE               resume this checkpoint, or the newest of a run's folder, as a new run
  --init_from X                  start from the weights of a checkpoint, a run, an export, a released file, the Hub
  --model.trained decoder        train the decoder alone, as --config finetune/decoder.yaml does
  --on_divergence rollback       if training diverges, go back to the last checkpoint and on with the next batches
  --print_config                 print the merged config and exit
"""

EVALUATION = """\
gsq {command} --ckpt_path CHECKPOINT [options]: {purpose}.

  --ckpt_path PATH               checkpoint; folder of a run or of all runs of a recipe, for the newest; an exported
                                 tokenizer; or demo, a small one in the package
  --data.root FOLDER             images; by default those of the training, at the place that the checkpoint names
  --data.val_crop_ratio X        1.0 resizes the short side to the image size; 0.875 is the paper's reference
  --data.val_batch_size N        images at a time, on each device
  --data.num_workers N           worker processes per device
  --weights ema|raw              averaged weights (EMA), the default, or those of the last step
{own}  --trainer.devices N            GPUs of this machine, all by default
  --config, -c FILE              a config whose values replace the checkpoint's
  --print_config                 print the merged config and exit
"""

METRICS = """\
  --model.metrics.names [a,b]    psnr, psnr_set, ssim, lpips_vgg, lpips_alex, codebook, rfid, inception_score, …
  --name NAME                    name of the tokenizer in reports
  --compare REPORT …             reports, checkpoints or folders to print beside the result
"""

TOKENS = """\
  --tokens.folder FOLDER         shards go to FOLDER/train and FOLDER/val; the same command writes what is missing
  --tokens.split train|val|all   which images; val by default
  --tokens.augment flip|ten_crop also write tokens of augmented copies of each image
  --tokens.format parquet        for datasets and polars; safetensors by default
  --tokens.images_per_shard N    10,000 by default
  --tokens.part I/N              part I of N independent jobs, from 0/N to N-1/N
"""

FOLDERS = """\
gsq evaluate --real PATH --fake PATH [options]: computes the metrics of images that another program made.

  --real PATH                    originals: a folder, or a .zip, .tar, list or .parquet file; where there are splits,
                                 the validation images
  --fake PATH                    their reconstructions, under the same names but for the suffix, in a lossless format
                                 such as PNG
  --metrics [a,b]                psnr, psnr_set, ssim, rfid by default; lpips_alex, lpips_vgg, inception_score,
                                 rfid_pytorch_fid, rfid_clean_fid, rfd_dinov2, rfd_efficientnet, rkid, rkd_dinov2,
                                 rkd_efficientnet
  --unpaired                     --fake has generated images: compare as sets. Metrics: fid, inception_score,
                                 precision_recall by default; kid, rfd_dinov2, rfd_efficientnet, rkd_dinov2,
                                 rkd_efficientnet, precision_recall_efficientnet
  --image_size N                 resize and center-crop originals to N×N first, as in validation
  --crop_ratio X                 1.0 resizes the short side to the image size; 0.875 is the paper's reference
  --bits_per_image N             bits of the tokens of an image, for comparisons
  --name NAME                    name of the tokenizer; the folder's name by default
  --batch_size N                 images at a time
  --num_workers N                worker processes
  --device WORD                  cpu, cuda or mps; a GPU by default, where there is one
  --output FOLDER                of the report; FAKE-report by default, FAKE-report-unpaired of sets
  --compare REPORT …             reports, checkpoints or folders to print beside the result
  --paper                        add the published figures of the GSQ paper's tables
  --plot PNG                     draw metrics over bits per pixel

More:
  gsq evaluate --help all        every option
"""

MORE = """
More:
  gsq {command} --help all                          every option
  gsq {command} --data.help ImageNetDataModule      those of a class
  gsq {command} --model.tokenizer.help
"""

# what follows the two hyphens of an option, up to its first dot
SECTIONS = (
    *("auto_resume", "checkpoint", "ckpt_path", "compare", "config", "data", "help", "init", "init_from", "model"),
    *("name", "on_divergence", "print_config", "reconstructions", "seed_everything", "tokens", "trainer", "weights"),
)


def first_page(command: str) -> str:
    """The help of `fit`, `weights`, `validate`, `test`, `predict` or `evaluate`."""
    if command == "evaluate":
        return FOLDERS
    if command == "weights":
        return (
            "gsq weights --config RECIPE: downloads all pretrained weights that the recipe needs, and prints their "
            "files.\nIt takes the options of gsq fit that concern the model.\n"
        )
    if command == "fit":
        return TRAINING + MORE.format(command=command)
    purposes = {
        "validate": "computes the metrics of a tokenizer",
        "test": "computes the metrics of a tokenizer, logged as test",
        "predict": "turns images into shards of tokens",
    }
    own = TOKENS if command == "predict" else METRICS
    return EVALUATION.format(command=command, purpose=purposes[command], own=own) + MORE.format(command=command)


def unknown_word(word: str, known: list[str]) -> str:
    """The message for a command that does not exist."""
    near = get_close_matches(word, known, n=1)
    return f"there is no {word}" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}")


def unknown_option(arguments: list[str]) -> str | None:
    """The message for the first option whose section no command has, or None."""
    for argument in arguments:
        section = argument.removeprefix("--").partition("=")[0].partition(".")[0].rstrip("+")
        if argument.startswith("--") and section not in SECTIONS:
            near = get_close_matches(section, SECTIONS, n=1)
            name = argument.partition("=")[0]
            return f"there is no option {name}" + (f"; did you mean --{near[0]}?" if near else "; --help lists them")
    return None

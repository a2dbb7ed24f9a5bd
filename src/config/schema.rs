//! Every configuration key: its section, meaning, unit and default. The comments here are the reference: docs/config.md is
//! generated from them. Defaults are FastMeta's published values where the paper is silent (see docs/method.md).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Most classes a network may have: no data set has more, and a slip of the pen must not ask for all memory.
pub const MAX_CLASSES: i64 = 1_000_000;
/// Most pixels of an image's side, for the same reason.
pub const MAX_SIDE: i64 = 4096;

/// Configuration of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seed of every random number of the run.
    pub seed: u64,
    /// How the student is trained. Other methods than `ssd_kd` bring defaults of their own: configs/methods/.
    pub method: MethodName,
    /// Data set the teacher was trained on: gives image size, classes and normalisation; its test split measures accuracy. `none`: there
    /// is no data, and what is measured is how far the student agrees with the teacher.
    pub dataset: DatasetName,
    /// Where tensors live. `auto`: on GPUs where there are some, one rank each (docs/gpu.md).
    pub device: DeviceName,
    /// Words to find the run by, in `report.json`, in a sweep's table and in trackers (docs/tracking.md), of 1 to 64 characters each. They
    /// change no number.
    pub tags: Vec<String>,
    /// Files of the data set.
    pub data: Data,
    /// The network that is all that is left of the data.
    pub teacher: Teacher,
    /// The network to train, and its optimiser.
    pub student: Student,
    /// The network that makes images.
    pub generator: Generator,
    /// Data inversion: the inner loop that makes images the teacher and the student can learn from.
    pub inversion: Inversion,
    /// The modulating function φ that weighs the task loss.
    pub phi: Phi,
    /// The global prioritised replay buffer.
    pub replay: Replay,
    /// Training of the student on drawn images.
    pub distill: Distill,
    /// Length of the run, and what happens along it.
    pub train: Train,
    /// `ssdkd teach`: training a teacher on real data.
    pub teach: Teach,
    /// Evaluation.
    pub eval: Eval,
    /// Ranks, threads and how they add up.
    pub parallel: Parallel,
    /// What is saved, when and how.
    pub checkpoint: Checkpoint,
}

/// Methods by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// Small-scale data-free knowledge distillation (Liu et al., CVPR 2024).
    SsdKd,
    /// FastMeta, "Fast-k" with k inner steps (Fang et al., AAAI 2022).
    FastMeta,
    /// The same with a generator that is trained on, not meta-learned.
    Fast,
    /// Data-free learning of student networks (Chen et al., ICCV 2019).
    Dafl,
    /// Zero-shot knowledge transfer (Micaelli and Storkey, NeurIPS 2019).
    Zskt,
    /// Data-free adversarial distillation (Fang et al., 2019).
    Dfad,
    /// Data-free quantisation's generator (Choi et al., CVPR Workshops 2020).
    Dfq,
    /// DeepInversion: the pixels themselves (Yin et al., CVPR 2020).
    Deepinv,
    /// Contrastive model inversion (Fang et al., IJCAI 2021).
    Cmi,
    /// Distillation on the real training split: the upper reference.
    Kd,
    /// The student alone, on the real training split with its labels: the other reference.
    Scratch,
}

impl MethodName {
    /// Every method.
    pub const ALL: [Self; 11] = [
        Self::SsdKd,
        Self::FastMeta,
        Self::Fast,
        Self::Dafl,
        Self::Zskt,
        Self::Dfad,
        Self::Dfq,
        Self::Deepinv,
        Self::Cmi,
        Self::Kd,
        Self::Scratch,
    ];

    /// Whether `replay.capacity` bounds what it keeps.
    pub(super) fn has_bounded_buffer(self) -> bool {
        self == Self::SsdKd
    }

    /// Whether one generator is trained over the whole run, a step a round.
    pub(super) fn trains_one_generator(self) -> bool {
        matches!(self, Self::Dafl | Self::Zskt | Self::Dfad | Self::Dfq)
    }

    /// As written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::SsdKd => "ssd_kd",
            Self::FastMeta => "fast_meta",
            Self::Fast => "fast",
            Self::Dafl => "dafl",
            Self::Zskt => "zskt",
            Self::Dfad => "dfad",
            Self::Dfq => "dfq",
            Self::Deepinv => "deepinv",
            Self::Cmi => "cmi",
            Self::Kd => "kd",
            Self::Scratch => "scratch",
        }
    }
}

/// Data sets by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetName {
    /// CIFAR-10, binary or Python distribution.
    Cifar10,
    /// CIFAR-100 (fine labels), binary or Python distribution.
    Cifar100,
    /// Fashion-MNIST, IDX files; padded to 32×32, one channel.
    FashionMnist,
    /// MNIST, IDX files; padded to 32×32, one channel.
    Mnist,
    /// NYUv2 with 13 classes of pixels, as VainF/nyuv2-python-toolkit lays it out; crops of 128×128.
    Nyuv2,
    /// Rooms drawn by ssdkd itself, 13 classes of pixels: no files.
    Scenes13,
    /// SVHN, cropped digits 32×32: `train_32x32.mat`, `test_32x32.mat`.
    Svhn,
    /// Tiny-ImageNet, 200 classes of 64×64 JPEG pictures as they are distributed.
    TinyImagenet,
    /// A folder per class of PNG and JPEG pictures, below `train/` and `test/` (or `val/`).
    Folder,
    /// No data at all.
    None,
}

impl DatasetName {
    /// Every data set.
    pub const ALL: [Self; 10] = [
        Self::Cifar10,
        Self::Cifar100,
        Self::FashionMnist,
        Self::Mnist,
        Self::Nyuv2,
        Self::Scenes13,
        Self::Svhn,
        Self::TinyImagenet,
        Self::Folder,
        Self::None,
    ];

    /// As written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::FashionMnist => "fashion_mnist",
            Self::Mnist => "mnist",
            Self::Nyuv2 => "nyuv2",
            Self::Scenes13 => "scenes13",
            Self::Svhn => "svhn",
            Self::TinyImagenet => "tiny_imagenet",
            Self::Folder => "folder",
            Self::None => "none",
        }
    }
}

/// Networks by name, as in the published PyTorch code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelName {
    /// ResNet-18 for small images.
    Resnet18,
    /// ResNet-34 for small images.
    Resnet34,
    /// VGG-11 with batch-norm for small images.
    Vgg11,
    /// Wide ResNet, depth 16, widening factor 1.
    #[serde(rename = "wrn16_1")]
    Wrn16x1,
    /// Wide ResNet, depth 16, widening factor 2.
    #[serde(rename = "wrn16_2")]
    Wrn16x2,
    /// Wide ResNet, depth 40, widening factor 1.
    #[serde(rename = "wrn40_1")]
    Wrn40x1,
    /// Wide ResNet, depth 40, widening factor 2.
    #[serde(rename = "wrn40_2")]
    Wrn40x2,
    /// DeepLabV3 on a ResNet-50: labels pixels.
    Deeplabv3Resnet50,
    /// DeepLabV3 on a MobileNetV2: labels pixels.
    Deeplabv3Mobilenet,
    /// A classifier of your own, as a TorchScript file (docs/teachers.md): teaches, and is not trained.
    Torchscript,
}

impl ModelName {
    /// Every network of this crate.
    pub const BUILT_IN: [Self; 9] = [
        Self::Resnet18,
        Self::Resnet34,
        Self::Vgg11,
        Self::Wrn16x1,
        Self::Wrn16x2,
        Self::Wrn40x1,
        Self::Wrn40x2,
        Self::Deeplabv3Resnet50,
        Self::Deeplabv3Mobilenet,
    ];

    /// Every name.
    pub const ALL: [Self; 10] = {
        let mut all = [Self::Torchscript; 10];
        let mut i = 0;
        while i < Self::BUILT_IN.len() {
            all[i] = Self::BUILT_IN[i];
            i += 1;
        }
        all
    };

    /// Fewest rows that batch-norm can train on: DeepLab normalises values pooled over whole images, one a row and channel.
    pub fn least_rows(self) -> usize {
        match self {
            Self::Deeplabv3Resnet50 | Self::Deeplabv3Mobilenet => 2,
            _ => 1,
        }
    }

    /// As written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resnet18 => "resnet18",
            Self::Resnet34 => "resnet34",
            Self::Vgg11 => "vgg11",
            Self::Wrn16x1 => "wrn16_1",
            Self::Wrn16x2 => "wrn16_2",
            Self::Wrn40x1 => "wrn40_1",
            Self::Wrn40x2 => "wrn40_2",
            Self::Deeplabv3Resnet50 => "deeplabv3_resnet50",
            Self::Deeplabv3Mobilenet => "deeplabv3_mobilenet",
            Self::Torchscript => "torchscript",
        }
    }
}

/// Device choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// GPUs where there are some, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA; refused where there is none.
    Cuda,
}

impl DeviceName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Cuda];

    /// As written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// `data.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder of the data set's files. Left out: `/usr/share/datasets/fashion-mnist` for Fashion-MNIST, else `data`.
    pub dir: Option<PathBuf>,
    /// Take files of a published data set with another number of images than it has: parts of the data set, for trials. Otherwise such a
    /// file is refused, since a copy that was cut short looks the same.
    pub allow_partial: bool,
    /// `folder`, `none`: number of classes. 0: as many as there are folders; with `none`, as the teacher's weights file says.
    pub classes: i64,
    /// `folder`, `none`: channels of an image. 0: as many as `data.mean` has values; with `none`, as the teacher's weights file says.
    pub channels: i64,
    /// `folder`, `none`: height and width of an image in pixels. 0 with `none`: as the teacher's weights file says.
    pub size: i64,
    /// `folder`: pixels along a picture's shorter side before a square of `data.size` is cut from its middle. 0: as the teacher's weights file
    /// says, or else `data.size`.
    pub resize: i64,
    /// Mean of each channel, of values between 0 and 1. Left out: the data set's own; with `none`, the teacher's weights file's.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, likewise.
    pub std: Vec<f64>,
    /// `scenes13`: height and width of a scene in pixels.
    pub scene_size: i64,
    /// `scenes13`: height and width of the squares that networks are trained on, as crops of NYUv2 are; scores are of whole scenes.
    /// 0: whole scenes.
    pub scene_crop: i64,
    /// `scenes13`: seed of the scenes. Those of the test split are never among those of the training split.
    pub scene_seed: u64,
    /// `scenes13`: scenes of the training split.
    pub train_scenes: usize,
    /// `scenes13`: scenes of the test split.
    pub test_scenes: usize,
}

/// `teacher.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Teacher {
    /// Architecture.
    pub model: ModelName,
    /// Weights file, `.safetensors` or PyTorch's `.pth`/`.pt` (a state_dict, plain or wrapped); of a `torchscript` teacher its program.
    pub weights: Option<PathBuf>,
}

/// `student.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Student {
    /// Architecture.
    pub model: ModelName,
    /// Weights that the backbone starts from, for networks that have one: a file of torchvision's ImageNet classifier, or of this
    /// network.
    pub backbone: Option<PathBuf>,
    /// Learning rate at the first student step.
    pub lr: f64,
    /// How it falls.
    pub schedule: Schedule,
    /// Learning rate at the end of the cosine schedule.
    pub lr_min: f64,
    /// SGD momentum. `ssdkd teach` takes it too: there is no `teach.momentum`.
    pub momentum: f64,
    /// Weight decay, on all parameters.
    pub weight_decay: f64,
}

/// Learning-rate schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// A cosine from `student.lr` to `student.lr_min` over the rounds after the warm-up.
    Cosine,
    /// × 0.1 after 60, 75 and 90 % of them (after 120, 150 and 180 of 200 epochs, as published).
    Steps,
}

/// `generator.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Generator {
    /// Values in a latent vector z.
    pub latent: i64,
    /// Base filters.
    pub filters: i64,
    /// Twice the width before the first convolution (`LargeGenerator` of zju-vipa/DataFree).
    pub large: bool,
    /// Up-samplings ×2 between the first map and the image. 0: as many as leave a first map of eight pixels or fewer a side, two at least
    /// (the published generator at 32×32), as far as the size can be halved.
    pub stages: i64,
}

/// `inversion.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Inversion {
    /// Inner steps k of a synthesis call.
    pub steps: u64,
    /// Images that one logical rank makes a round.
    pub batch_size: usize,
    /// Adam learning rate of the generator's inner steps.
    pub lr_generator: f64,
    /// Adam learning rate of the meta step, which moves the shared generator once a round. 0: `inversion.lr_generator` ×
    /// `inversion.steps`.
    pub lr_meta: f64,
    /// Adam learning rate of the latent vectors.
    pub lr_latent: f64,
    /// β₁ of Adam, for the generator's inner steps, the latent vectors and the meta step.
    pub adam_beta1: f64,
    /// β₂ of the same.
    pub adam_beta2: f64,
    /// λ_bn, weight of the batch-norm statistics loss.
    pub statistics_weight: f64,
    /// What the meta step follows.
    pub meta: MetaRule,
    /// λ_task, weight of the (φ-weighted) task loss.
    pub task_weight: f64,
    /// λ_adv, weight of the adversarial disagreement of teacher and student. 0 leaves the student out of the inner loop.
    pub adversarial_weight: f64,
    /// λ_bal, weight of the balance of predicted categories (`dafl`, `dfq`).
    pub balance_weight: f64,
    /// λ_act, weight of the teacher's activation (`dafl`).
    pub activation_weight: f64,
    /// λ_tv, weight of the images' total variation (`deepinv`).
    pub variation_weight: f64,
    /// λ_l2, weight of the images' norm (`deepinv`).
    pub norm_weight: f64,
    /// λ_cr, weight of the contrastive loss (`cmi`).
    pub contrastive_weight: f64,
    /// τ of the contrastive loss.
    pub contrastive_temperature: f64,
    /// Features of earlier images that the contrastive loss remembers, over all logical ranks.
    pub contrastive_bank: usize,
    /// How many of them an inner step of a logical rank is set against.
    pub contrastive_negatives: usize,
    /// Momentum m of the averaged batch statistics; 0 compares each batch alone.
    pub statistics_momentum: f64,
    /// Where pixels are labelled: regions of a new image, each with a category drawn for it: the pixels nearest to as many random
    /// places. 1: an image is to show one category all over. Without effect in methods that ask for no category.
    pub regions: usize,
    /// Random crops of the inner loop shift an image by up to this many pixels.
    pub view_shift: i64,
    /// They flip it left to right with probability one half. Not for images that change their class then, such as digits.
    pub view_flip: bool,
    /// Rounds after the warm-up at which the generator's first linear layer and first batch-norm are drawn anew; 0 never.
    pub reset_after_rounds: u64,
}

/// Meta steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetaRule {
    /// The sum of the inner gradients (first-order MAML).
    Maml,
    /// 67 × the way the copy has gone (REPTILE, with the reference's factor).
    Reptile,
}

/// `phi.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Phi {
    /// First factor: how rare the predicted category is in the buffer.
    pub diversity: Diversity,
    /// Second factor: how unsure the teacher is.
    pub difficulty: Difficulty,
    /// Focusing exponent γ of the second factor.
    pub gamma: f64,
    /// Whose probability the second factor uses.
    pub confidence: Confidence,
    /// φ is a constant weight; false lets gradients through it (then (1 − p)^γ·CE is the focal loss).
    pub detach: bool,
    /// Scaling of φ over a batch.
    pub normalise: Normalise,
    /// Largest value of the `inverse` diversity factor.
    pub inverse_cap: f64,
}

/// Forms of φ's diversity factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Diversity {
    /// 1 − n_c/|B|.
    Linear,
    /// min(`phi.inverse_cap`, |B|/(C·max(n_c, 1))).
    Inverse,
    /// 1.
    Off,
}

/// Forms of φ's difficulty factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Difficulty {
    /// (1 − p)^γ.
    Focal,
    /// 1.
    Off,
}

/// Probability used by φ's difficulty factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Of the teacher's predicted category (its largest).
    Predicted,
    /// Of the target label.
    Target,
}

/// Scaling of φ over a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// None: the task loss fades as the teacher grows sure.
    None,
    /// Divide by the batch mean.
    Mean,
}

/// `replay.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Capacity N over all ranks, in images.
    pub capacity: usize,
    /// How samples are drawn.
    pub draw: DrawRule,
    /// Priority exponent α.
    pub alpha: f64,
    /// Exponent β of the importance weights w = (N·P)^−β.
    pub beta: f64,
    /// Added to |δ| before the exponent.
    pub epsilon: f64,
    /// Scaling of the importance weights.
    pub weight_norm: WeightNorm,
    /// Which samples leave when new ones arrive.
    pub replace: Replace,
    /// How images are held.
    pub image_dtype: ImageDtype,
}

/// Draw rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrawRule {
    /// P ∝ (|δ| + ε)^α, weighted by w.
    Priority,
    /// Uniform, w = 1.
    Uniform,
}

/// Scaling of importance weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightNorm {
    /// None.
    None,
    /// Divide by the largest weight in the whole buffer.
    Max,
}

/// Replacement rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Replace {
    /// The oldest.
    Fifo,
    /// Those with the smallest mass, the oldest of equals first.
    LowestPriority,
    /// Any, all equally likely.
    Random,
}

/// Image storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageDtype {
    /// One byte a value, rounded to nearest.
    Uint8,
    /// Four bytes a value, exact.
    Float32,
}

/// `distill.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Distill {
    /// Rows of a student step, over all ranks.
    pub batch_size: usize,
    /// Student steps a round. 0: round(400·`replay.capacity`/50,000), at least 20; with real images (`kd`, `scratch`) an epoch.
    pub steps_per_round: u64,
    /// Temperature T of the distillation loss and of the priorities.
    pub temperature: f64,
    /// Weight of the labels' cross entropy beside the distillation loss, where there are labels (`kd`).
    pub label_weight: f64,
    /// Views kept per sample with the teacher's logits, so that a step needs no teacher forward. The first is the image as it is: N
    /// keeps N − 1 augmented ones. 0: a fresh view and a teacher forward at every draw.
    pub teacher_views: usize,
    /// Views shift an image by up to this many pixels (zero padding).
    pub view_shift: i64,
    /// They flip it left to right with probability one half. Not for images that change their class then, such as digits.
    pub view_flip: bool,
}

/// `train.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Rounds: one inversion and its distillation each.
    pub rounds: u64,
    /// First rounds that only fill the buffer: no adversarial term, no student step.
    pub warmup_rounds: u64,
    /// Evaluate the student every so many rounds (and after the last).
    pub eval_every_rounds: u64,
    /// Save a picture of synthetic images every so many rounds (and after the last); 0 never.
    pub picture_every_rounds: u64,
    /// Stop after so many steps in a row with a NaN or infinite gradient.
    pub max_nonfinite_steps: u32,
    /// What convolutions and batch-norm compute with; weights, statistics, losses and optimisers are f32 always.
    pub precision: Precision,
}

/// Element types of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits; on GPUs without TF32.
    F32,
    /// 32 bits, whose products on NVIDIA's tensor cores take 10 bits of mantissa of each factor. Refused on the CPU.
    Tf32,
    /// bfloat16: half the memory traffic, 8 bits of mantissa.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// As written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// `teach.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Teach {
    /// Passes over the training split.
    pub epochs: u64,
    /// Rows of a step, over all ranks.
    pub batch_size: usize,
    /// Learning rate at the first step; cosine to `student.lr_min` over the epochs.
    pub lr: f64,
    /// Weight decay, on all parameters.
    pub weight_decay: f64,
    /// Random crops shift an image by up to this many pixels.
    pub view_shift: i64,
    /// Flip images left to right with probability one half.
    pub flip: bool,
    /// Train on squares of so many pixels, cut anywhere out of larger images. 0: as large as the data set's images are for a network.
    pub crop: i64,
    /// Weights that the teacher's backbone starts from, as `student.backbone`.
    pub backbone: Option<PathBuf>,
}

/// `eval.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Images per forward pass.
    pub batch_size: usize,
    /// `dataset = "none"`: fresh synthetic images on which student and teacher are compared.
    pub fresh_images: usize,
}

/// `parallel.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// M: the number of logical ranks, which fixes the numbers of a run on any number of ranks dividing it. Left out: the
    /// ranks of the first launch.
    pub logical_ranks: Option<usize>,
    /// Threads per rank. Left out: OMP_NUM_THREADS, else the node's cores divided by its ranks.
    pub threads: Option<usize>,
    /// How gradients are added between ranks.
    pub reduce: ReduceRule,
    /// Seconds that ranks wait in one collective for a rank that shows no sign of life, before the job is ended; 0 waits for ever.
    pub timeout_s: u64,
    /// Let several ranks compute on one GPU, where they are more than GPUs: for trials, since they take turns. NCCL then goes through
    /// sockets.
    pub share_gpu: bool,
}

/// Reductions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReduceRule {
    /// In the order of a fixed tree over logical ranks: the same bits on any number of ranks.
    Deterministic,
    /// The library's own all-reduce: the order of additions is its own.
    Native,
}

/// `checkpoint.*`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Save every so many steps (an inversion counts as one); 0 never, but after the first step of a launch, on a signal and at the
    /// end.
    pub every_steps: u64,
    /// Save when the last checkpoint is so many minutes old; 0 never.
    pub every_minutes: f64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// How shards are packed into files.
    pub pack: Pack,
    /// What to do when a checkpoint cannot be written (disk full). The last one stays in any case.
    pub on_failure: OnFailure,
    /// Signals that stop the run after the step it is in, with a checkpoint.
    pub signals: Vec<StopSignal>,
}

/// Packing of checkpoint files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pack {
    /// A file per logical rank.
    LogicalRank,
    /// A file per process: fewer files, where a file system counts them.
    Rank,
}

/// What follows a checkpoint that could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Say so and go on; the next one may succeed.
    GoOn,
    /// End the run.
    End,
}

/// Signals by which schedulers announce the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopSignal {
    /// SIGTERM.
    Term,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
    /// SIGINT.
    Int,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            method: MethodName::SsdKd,
            dataset: DatasetName::Cifar10,
            device: DeviceName::Auto,
            tags: Vec::new(),
            data: Data::default(),
            teacher: Teacher::default(),
            student: Student::default(),
            generator: Generator::default(),
            inversion: Inversion::default(),
            phi: Phi::default(),
            replay: Replay::default(),
            distill: Distill::default(),
            train: Train::default(),
            teach: Teach::default(),
            eval: Eval::default(),
            parallel: Parallel::default(),
            checkpoint: Checkpoint::default(),
        }
    }
}

impl Default for Teacher {
    fn default() -> Self {
        Self { model: ModelName::Wrn40x2, weights: None }
    }
}

impl Default for Student {
    fn default() -> Self {
        Self {
            model: ModelName::Wrn16x1,
            backbone: None,
            lr: 0.2,
            schedule: Schedule::Cosine,
            lr_min: 2e-4,
            momentum: 0.9,
            weight_decay: 1e-4,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            dir: None,
            allow_partial: false,
            classes: 0,
            channels: 0,
            size: 0,
            resize: 0,
            mean: Vec::new(),
            std: Vec::new(),
            scene_size: 128,
            scene_crop: 0,
            scene_seed: 0,
            train_scenes: 10_000,
            test_scenes: 500,
        }
    }
}

impl Default for Generator {
    fn default() -> Self {
        Self { latent: 256, filters: 64, large: false, stages: 0 }
    }
}

impl Default for Inversion {
    fn default() -> Self {
        Self {
            steps: 5,
            batch_size: 64,
            lr_generator: 3e-3,
            lr_meta: 0.0,
            lr_latent: 0.01,
            adam_beta1: 0.5,
            adam_beta2: 0.999,
            meta: MetaRule::Maml,
            statistics_weight: 10.0,
            task_weight: 0.4,
            adversarial_weight: 1.1,
            balance_weight: 0.0,
            activation_weight: 0.0,
            variation_weight: 0.0,
            norm_weight: 0.0,
            contrastive_weight: 0.0,
            contrastive_temperature: 0.2,
            contrastive_bank: 40_960,
            contrastive_negatives: 4096,
            statistics_momentum: 0.9,
            regions: 1,
            view_shift: 4,
            view_flip: true,
            reset_after_rounds: 120,
        }
    }
}

impl Default for Phi {
    fn default() -> Self {
        Self {
            diversity: Diversity::Linear,
            difficulty: Difficulty::Focal,
            gamma: 2.0,
            confidence: Confidence::Predicted,
            detach: true,
            normalise: Normalise::None,
            inverse_cap: 5.0,
        }
    }
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            capacity: 5000,
            draw: DrawRule::Priority,
            alpha: 0.6,
            beta: 0.4,
            epsilon: 1e-6,
            weight_norm: WeightNorm::None,
            replace: Replace::Fifo,
            image_dtype: ImageDtype::Uint8,
        }
    }
}

impl Default for Distill {
    fn default() -> Self {
        Self { batch_size: 256, steps_per_round: 0, temperature: 20.0, label_weight: 0.0, teacher_views: 4, view_shift: 4, view_flip: true }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            rounds: 220,
            warmup_rounds: 20,
            eval_every_rounds: 1,
            picture_every_rounds: 20,
            max_nonfinite_steps: 20,
            precision: Precision::F32,
        }
    }
}

impl Teach {
    /// Height and width of images as the teacher sees them, where the data set's are `size` for a network.
    pub fn seen(&self, size: [i64; 2]) -> [i64; 2] {
        if self.crop > 0 { [self.crop; 2] } else { size }
    }
}

impl Default for Teach {
    fn default() -> Self {
        Self { epochs: 200, batch_size: 256, lr: 0.1, weight_decay: 5e-4, view_shift: 4, flip: true, crop: 0, backbone: None }
    }
}

impl Default for Eval {
    fn default() -> Self {
        Self { batch_size: 250, fresh_images: 1000 }
    }
}

impl Default for Parallel {
    fn default() -> Self {
        Self { logical_ranks: None, threads: None, reduce: ReduceRule::Deterministic, timeout_s: 600, share_gpu: false }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            every_steps: 0,
            every_minutes: 10.0,
            keep: 2,
            pack: Pack::LogicalRank,
            on_failure: OnFailure::GoOn,
            signals: vec![StopSignal::Term, StopSignal::Usr1, StopSignal::Usr2],
        }
    }
}

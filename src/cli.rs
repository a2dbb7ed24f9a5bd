//! Arguments as typed. No logic.

use crate::config::{DatasetName, DeviceName, MAX_CLASSES, ModelName, Precision};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Train a small network from a big one when the data is gone.
///
/// Distributed small-scale data-free knowledge distillation (SSD-KD): start it with mpirun or srun, one rank per GPU or per
/// share of the cores; without a launcher it runs as one rank.
#[derive(Debug, Parser)]
#[command(name = "ssdkd", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SSDKD_COMMIT"), ")"), max_term_width = 110)]
pub struct Cli {
    /// Write what every rank does when to this file, for a browser to show (docs/trace.md).
    #[arg(long, value_name = "FILE", global = true)]
    pub trace: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a student from a teacher, without data.
    Train(RunArgs),
    /// Train a teacher on real data.
    Teach(RunArgs),
    /// Measure accuracy on the test split.
    Eval(EvalArgs),
    /// Apply a network to images.
    Predict(PredictArgs),
    /// Write a run's network for other programs: its student, or the teacher that `teach` made.
    Export(ExportArgs),
    /// Look into a run folder or a weights file.
    Inspect(InspectArgs),
    /// Write a page about a run, a sweep, or several of them side by side.
    Report(ReportArgs),
    /// Look at the files of data sets.
    Data {
        /// What to do with them.
        #[command(subcommand)]
        action: DataAction,
    },
    /// Measure parts of ssdkd on this machine.
    Bench {
        /// Which.
        #[command(subcommand)]
        action: BenchAction,
    },
    /// Plan, run and collect many runs that differ in some keys (docs/sweeps.md).
    Sweep {
        /// What to do with them.
        #[command(subcommand)]
        action: SweepAction,
    },
    /// Run a study: a sweep whose axes are known, with the table a publication would have (docs/studies.md).
    Study {
        /// Which.
        #[command(subcommand)]
        action: StudyAction,
    },
    /// Check MPI, libtorch, CUDA, NCCL and Slurm, and say what to do about each.
    Doctor(DoctorArgs),
    /// Show, check or document configuration.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        action: ConfigAction,
    },
}

/// What to check.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also measure pairs of the ranks of this launch, and compare their hosts: networks, versions, which host differs
    /// (docs/sites.md).
    #[arg(long)]
    pub comm: bool,
    /// Also compute logits, running statistics and statistics losses of every network on this rank's device, and hold them
    /// against PyTorch's: some ten seconds.
    #[arg(long)]
    pub networks: bool,
}

/// A configuration, in layers: defaults, files, environment, `--set`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Configuration files; later ones win.
    #[arg(long, value_name = "FILE", num_args = 1.., action = clap::ArgAction::Append)]
    pub config: Vec<PathBuf>,
    /// Set one key, for example --set replay.capacity=5000.
    #[arg(long, value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    pub set: Vec<String>,
    /// Folder of the data set's files (the same as --set data.dir=DIR).
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// A run.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Its configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Folder of the run: configuration, log, metrics, report and weights go there.
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Start over: what an earlier run left in the folder is removed.
    #[arg(long)]
    pub fresh: bool,
    /// Pause once so many rounds are done, with a checkpoint; the same command with a later round, or without, goes on.
    #[arg(long, value_name = "N")]
    pub until_round: Option<u64>,
}

/// What to evaluate.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A finished run: its teacher and student.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["weights", "model"])]
    pub run_dir: Option<PathBuf>,
    /// A weights file.
    #[arg(long, value_name = "FILE", required_unless_present = "run_dir")]
    pub weights: Option<PathBuf>,
    /// Its architecture.
    #[arg(long, value_name = "NAME", required_unless_present = "run_dir")]
    pub model: Option<ModelName>,
    /// The data set.
    #[arg(long, value_name = "NAME", required_unless_present = "run_dir")]
    pub dataset: Option<DatasetName>,
    /// Folder of the data set's files.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// What to apply to what.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// A weights file.
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// Its architecture.
    #[arg(long, value_name = "NAME")]
    pub model: ModelName,
    /// Number of classes; left out, the weights file's own.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(i64).range(1..=MAX_CLASSES))]
    pub classes: Option<i64>,
    /// A safetensors file with normalised float images b×c×h×w in a tensor `images`, or a folder of PNG and JPEG files.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub input: PathBuf,
    /// Where to compute.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceName,
    /// Data set whose size and normalisation a folder's pictures get.
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<DatasetName>,
    /// Where to write: safetensors with `logits` and `features`; for a folder of pictures a CSV with file, class and confidence, or, for a
    /// network that labels pixels, a folder of label maps: PNG files whose pixels are labels and whose palette shows them in colours.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub out: PathBuf,
}

/// What to export.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A finished run.
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Format.
    #[arg(long, value_name = "FORMAT")]
    pub to: ExportFormat,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Export formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// One file of tensors, opened by `safetensors.torch.load_file`.
    Safetensors,
    /// A module, opened by `torch.jit.load`: images in, logits out, weights that train on.
    Torchscript,
    /// A model of opset 17, opened by onnxruntime and others: images in, logits out.
    Onnx,
    /// A Python file with the network's class, and its weights beside it: `from FILE import load; network = load()`.
    Pytorch,
}

/// What to look into.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A run folder or a weights file.
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// Print four checksums of a run folder's newest checkpoint and metrics: equal runs print equal lines.
    #[arg(long, conflicts_with = "status")]
    pub checksum: bool,
    /// Print how a run stands: running, stopped or paused (start it again: it goes on), finished or failed.
    #[arg(long)]
    pub status: bool,
}

/// What to show on a page.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run folders and sweep folders. What is finished is shown.
    #[arg(value_name = "DIR", required = true, num_args = 1..)]
    pub dirs: Vec<PathBuf>,
    /// The page; left out: report.html in the folder, or comparison.html here for several.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What to do with the files of a data set.
#[derive(Debug, Subcommand)]
pub enum DataAction {
    /// Say which data sets a folder holds, and what of them is missing, damaged, or of a wrong size or label range.
    Check {
        /// The folder.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Take parts of a published data set, as `data.allow_partial = true` does.
        #[arg(long)]
        partial: bool,
    },
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Print every key with its value and where it came from.
    Show(ConfigArgs),
    /// Check a configuration, and that the files it names are there, without running anything.
    Check(ConfigCheckArgs),
    /// Print the reference of all keys as Markdown (docs/config.md).
    Reference,
}

/// What to check, and for what.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The command it is meant for.
    #[arg(long = "for", value_name = "COMMAND", default_value = "train")]
    pub command: Trains,
}

/// Commands that train something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trains {
    /// A student from a teacher.
    Train,
    /// A teacher on real data.
    Teach,
}

/// What to do with a sweep.
#[derive(Debug, Subcommand)]
pub enum SweepAction {
    /// Make the numbered plan of a sweep file, with every trial checked. Again after a change: trials that stay keep their folders.
    Plan {
        /// The sweep file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The sweep's folder; left out: runs/NAME, NAME being the file's.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Run what is open on this machine, several trials at a time. Any number of these may run at once, on any hosts.
    Run(SweepRunArgs),
    /// Submit what is open and not in the queue yet as Slurm job arrays.
    Submit {
        /// The sweep's folder.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Ranks of a trial; left out, the sweep file's.
        #[arg(long, value_name = "R")]
        ranks: Option<usize>,
        /// Print the batch files instead.
        #[arg(long)]
        dry_run: bool,
    },
    /// How the trials stand, from their files alone: done, running, failed and why, time left.
    Status {
        /// The sweep's folder.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Print JSON, with every trial.
        #[arg(long)]
        json: bool,
    },
    /// Write results.csv, results.parquet and results.md (mean ± std over repeats) and print the last.
    Collect {
        /// The sweep's folder.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Values of report.json to show, such as student.top1; the first sorts. Left out, the sweep file's.
        #[arg(long, value_name = "KEY", num_args = 1..)]
        metric: Vec<String>,
    },
    /// Let failed trials, and those whose runner is known to be gone, be run again; their logs are kept.
    Retry {
        /// The sweep's folder.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Numbers or names of trials; left out, all that failed. Naming a trial also says that its runner is gone.
        #[arg(value_name = "TRIAL")]
        trials: Vec<String>,
    },
}

/// How to run a sweep here.
#[derive(Debug, Args)]
pub struct SweepRunArgs {
    /// The sweep's folder.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Trials at a time, each on cores (and GPUs) of its own; left out: the sweep file's, or as many as there are cores and GPUs for.
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// End after so many trials (or rungs of trials).
    #[arg(long, value_name = "N")]
    pub at_most: Option<usize>,
    /// Ranks of a trial; left out, the sweep file's.
    #[arg(long, value_name = "R")]
    pub ranks: Option<usize>,
}

/// What to study.
#[derive(Debug, Subcommand)]
pub enum StudyAction {
    /// Size of the synthetic data: a buffer of some shares of the original training set.
    Scale {
        /// How.
        #[command(flatten)]
        study: StudyArgs,
        /// Buffers, in per cent of the original training set.
        #[arg(long, value_name = "PER_CENT", num_args = 1.., default_values_t = [100.0, 20.0, 10.0, 5.0, 1.0])]
        sizes: Vec<f64>,
    },
    /// Diversity factor, difficulty factor and priority sampling, each on and off: eight rows.
    Ablation(StudyArgs),
    /// Methods side by side, on one pair of networks or several.
    Compare {
        /// How.
        #[command(flatten)]
        study: StudyArgs,
        /// A row, as configuration files and KEY=VALUE words in one argument, after `NAME: ` if it is to have a name; again for each
        /// row. It wins over --config and --pair. Left out: every method, making its images as published.
        #[arg(long, value_name = "WORDS")]
        variant: Vec<String>,
        /// A column, as configuration files and KEY=VALUE words in one argument, after `NAME: ` if it is to have a name; again for each.
        /// Left out: what --config says.
        #[arg(long, value_name = "WORDS")]
        pair: Vec<String>,
    },
    /// A row of the published tables: how far from the printed figures it ends.
    Reproduce {
        /// How.
        #[command(flatten)]
        study: StudyArgs,
        /// A pair of networks, as configuration files and KEY=VALUE words in one argument, after `NAME: ` if it is to have a name; again
        /// for each. Left out: what --config says.
        #[arg(long, value_name = "WORDS")]
        pair: Vec<String>,
    },
    /// Strong and weak scaling: the same work, and the same work a rank, on each number of ranks.
    Ranks(RanksStudyArgs),
    /// Print and write a study's table as it stands.
    Show {
        /// The study's folder.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// How to study.
#[derive(Debug, Args)]
pub struct StudyArgs {
    /// The base configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The study's folder; left out: runs/NAME, NAME being the study's.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Runs of each row, with seeds of their own.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub seeds: u64,
    /// Runs at a time; left out, as many as there are cores and GPUs for.
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Ranks of a run.
    #[arg(long, value_name = "R", default_value_t = 1)]
    pub ranks: usize,
    /// Threads of a rank.
    #[arg(long, value_name = "T")]
    pub threads: Option<usize>,
    /// Plan it and run nothing: for `ssdkd sweep submit DIR` and other runners.
    #[arg(long)]
    pub plan_only: bool,
}

/// How to study ranks.
#[derive(Debug, Args)]
pub struct RanksStudyArgs {
    /// The base configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The study's folder.
    #[arg(long, value_name = "DIR", default_value = "runs/ranks")]
    pub dir: PathBuf,
    /// Numbers of ranks, each a divisor of the largest.
    #[arg(long, value_name = "R", num_args = 1.., default_values_t = [1, 2])]
    pub ranks: Vec<usize>,
    /// Runs of each row, with seeds of their own.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub seeds: u64,
    /// Threads of a rank.
    #[arg(long, value_name = "T", default_value_t = 1)]
    pub threads: usize,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchAction {
    /// The prioritised sampler: cycles of sample(256) and update(256) per second on one thread, without images.
    Replay(BenchReplayArgs),
    /// An inversion step and a distillation step of a pair: time, arithmetic, memory.
    Step(BenchStepArgs),
    /// A pair on the ranks of this launch, each with the work of one alone: efficiency, communication, bytes.
    Ranks(BenchRanksArgs),
}

/// A pair of networks and the images of a step.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// The teacher's architecture.
    #[arg(long, value_name = "NAME", default_value = "wrn40_2", help = architecture(), value_parser = built_in())]
    pub teacher: ModelName,
    /// The student's architecture.
    #[arg(long, value_name = "NAME", default_value = "wrn16_1", help = architecture(), value_parser = built_in())]
    pub student: ModelName,
    /// Data set whose classes and image size are used; no file is read.
    #[arg(long, value_name = "NAME", default_value = "cifar10")]
    pub dataset: DatasetName,
    /// Images of a step, on one rank.
    #[arg(long, value_name = "B", default_value_t = 128)]
    pub batch: usize,
    /// Turns that every kind of step gets; the median turn is printed.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    pub turns: u64,
    /// Where: GPUs if there are some, or what is named.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceName,
    /// Let several ranks compute on one GPU (parallel.share_gpu).
    #[arg(long)]
    pub share_gpu: bool,
}

/// How to measure ranks.
#[derive(Debug, Args)]
pub struct BenchRanksArgs {
    /// Of what.
    #[command(flatten)]
    pub pair: PairArgs,
    /// The library's own sum over ranks, in place of the one whose bits do not depend on their number.
    #[arg(long)]
    pub native: bool,
    /// Measure nothing: project the pair's steps to 8, 64 and 1,024 GPUs, and print what that assumes.
    #[arg(long, conflicts_with = "native")]
    pub project: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How to measure steps.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// Of what.
    #[command(flatten)]
    pub pair: PairArgs,
    /// Threads; left out: OMP_NUM_THREADS, else all cores.
    #[arg(long, value_name = "T")]
    pub threads: Option<usize>,
    /// What our convolutions and batch-norm compute with; plain PyTorch stays f32.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub dtype: Precision,
    /// Measure plain PyTorch too, in turns with ours, in this Python.
    #[arg(long, value_name = "PYTHON")]
    pub against: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How to measure the replay buffer.
#[derive(Debug, Args)]
pub struct BenchReplayArgs {
    /// Sizes of the buffer; left out: 5000, 50000, 1000000 and 10000000 (with --ranks, the first).
    #[arg(long, value_name = "N", num_args = 1..)]
    pub n: Vec<usize>,
    /// Measure torchrl's and cpprb's samplers too, in turns with ours, in this Python.
    #[arg(long, value_name = "PYTHON", conflicts_with_all = ["balance", "ranks"])]
    pub against: Option<PathBuf>,
    /// Instead: which share of a batch moves between ranks when shards differ by one per cent, and at worst.
    #[arg(long, conflicts_with = "ranks")]
    pub balance: bool,
    /// Instead: the time, bytes and messages of a draw with images on the ranks of this launch.
    #[arg(long)]
    pub ranks: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn architecture() -> String {
    format!("Its architecture: {}", ModelName::BUILT_IN.map(ModelName::name).join(", "))
}

/// Networks that are made without a file.
fn built_in() -> impl TypedValueParser<Value = ModelName> {
    let named = |name: String| ModelName::BUILT_IN.into_iter().find(|model| model.name() == name).ok_or("not a network of this crate");
    PossibleValuesParser::new(ModelName::BUILT_IN.map(ModelName::name)).try_map(named)
}

impl ValueEnum for ModelName {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl ValueEnum for DeviceName {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl ValueEnum for Precision {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl ValueEnum for DatasetName {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

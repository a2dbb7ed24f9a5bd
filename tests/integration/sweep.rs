//! Sweeps as their users run them: planned, run by one or several runners, interrupted, repeated, collected; on a real Slurm; and a
//! thousand trials at once.

use crate::cluster::{Frozen, has_checkpoint};
use crate::docs::check;
use crate::launch::{Outcome, has_mpirun, root, run, small_fashion_mnist, ssdkd, ssdkd_on};
use crate::slurm::cluster;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use ssdkd::checkpoint::checksums;
use ssdkd::metrics::{RoundRecord, read_table};
use ssdkd::sweep::{Array, Resources};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(240);

/// A sweep file with runs of about a second, its data, and the sweep's folder.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new(rest: &str) -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(scene.folder.path().join("data")).unwrap();
        small_fashion_mnist(&scene.folder.path().join("data"), 32);
        scene.write(rest);
        scene
    }

    /// What is at the top of the file, and its other tables.
    fn write(&self, rest: &str) {
        let (top, tables) = rest.split_once("---").unwrap_or(("", rest));
        let usual = "data.dir = \"data\"\nparallel.logical_ranks = 2\nparallel.threads = 1\ntrain.rounds = 4\ntrain.warmup_rounds = 1\n\
             train.eval_every_rounds = 2\ntrain.max_nonfinite_steps = 1\ninversion.steps = 1\ninversion.batch_size = 16\n\
             generator.filters = 8\nreplay.capacity = 100\ndistill.batch_size = 32\ndistill.steps_per_round = 3\n\
             distill.teacher_views = 2";
        // What the test sets takes the place of the usual.
        let is_kept = |line: &&str| !tables.lines().any(|other| other.split(" = ").next() == line.split(" = ").next());
        let usual: String = usual.lines().filter(is_kept).map(|line| format!("{line}\n")).collect();
        let demo = root().join("configs/fashion_mnist/demo.toml");
        let text = format!("config = \"{}\"\n{top}\n[set]\n{usual}{tables}", demo.display());
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("tiny.toml")
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("sweep")
    }

    fn plan(&self) -> Outcome {
        ssdkd(&["sweep", "plan", self.file().to_str().unwrap(), "--dir", self.dir().to_str().unwrap()])
    }

    fn planned(rest: &str) -> Self {
        let scene = Self::new(rest);
        scene.plan().expect(0);
        scene
    }

    fn command(&self, what: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssdkd"));
        command.args(["sweep", what]).arg(self.dir()).args(more);
        command
    }

    fn sweep(&self, what: &str, more: &[&str]) -> Outcome {
        run(self.command(what, more), DEADLINE)
    }

    /// A runner, in the background.
    fn runner(&self, more: &[&str]) -> Runner {
        let mut command = self.command("run", more);
        Runner(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// `status --json`: state of every trial by its number, and its note.
    fn states(&self) -> BTreeMap<usize, (String, String)> {
        let status: Value = serde_json::from_str(&self.sweep("status", &["--json"]).expect(0).stdout).unwrap();
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows = status["trials"].as_array().unwrap().iter();
        rows.map(|row| (row["name"].as_str().unwrap()[..4].parse().unwrap(), (text(row, "state"), text(row, "note")))).collect()
    }

    fn count(&self, state: &str) -> usize {
        self.states().values().filter(|(found, _)| found == state).count()
    }

    /// Run folder of a trial.
    fn trial(&self, number: usize) -> PathBuf {
        let plan = std::fs::read_to_string(self.dir().join("plan.toml")).unwrap();
        let hash = plan.split(&format!("number = {number}\nhash = \"")).nth(1).unwrap().split('"').next().unwrap();
        self.dir().join("trials").join(format!("{number:04}-{hash}"))
    }

    fn outcome(&self, number: usize) -> Value {
        serde_json::from_slice(&std::fs::read(self.trial(number).join("outcome.json")).unwrap()).unwrap()
    }

    /// A trial's own command, into another folder, undisturbed.
    fn undisturbed(&self, number: usize, seed: u64, sets: &[&str]) -> Vec<(&'static str, String)> {
        let alone = self.folder.path().join(format!("alone-{number}"));
        let plan = std::fs::read_to_string(self.dir().join("plan.toml")).unwrap();
        let config = plan.lines().find_map(|line| line.strip_prefix("config = \"")).unwrap().trim_end_matches('"');
        let config = self.dir().join(config);
        let mut words: Vec<String> =
            ["train", "--config", config.to_str().unwrap(), "--run-dir", alone.to_str().unwrap()].map(String::from).into();
        let seed = format!("seed={seed}");
        sets.iter().chain([&seed.as_str()]).for_each(|set| words.extend(["--set".into(), (*set).into()]));
        ssdkd(&words).expect(0);
        checksums(&alone).unwrap().to_vec()
    }
}

struct Runner(Child);

impl Runner {
    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a process that this test has started and not waited for.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    fn ends(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process that holds a run folder.
fn holder(run: &Path) -> i32 {
    let text = std::fs::read_to_string(run.join("lock")).unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn kill(process: i32) {
    // SAFETY: a signal to a process that this test's runner has started.
    assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
}

fn report(run: &Path, pointer: &str) -> f64 {
    let report: Value = serde_json::from_slice(&std::fs::read(run.join("report.json")).unwrap()).unwrap();
    report.pointer(pointer).unwrap().as_f64().unwrap()
}

const CASES: &str = "seeds = [3, 4]\n---\n[axes]\ncase = [{ student.lr = 0.1 }, { student.lr = 1e30 }, { generator.filters = 60000 }, { student.lr = 0.2 }]\n";

/// Six of eight trials cannot be what they should; the sweep goes on over them, says why, and changes nothing when it is run again. What is
/// collected is what the reports say.
#[test]
fn trials_that_fail_do_not_stop_a_sweep_and_results_are_those_of_the_reports() {
    let scene = Scene::planned(CASES);
    let out = scene.sweep("run", &["--jobs", "2"]).expect(1).says(&["4 trials failed", "ssdkd sweep retry"]);
    assert!(out.stdout.contains("4 done, 0 rungs reached, 4 failed"), "{}", out.stdout);
    let states = scene.states();
    let of = |number: usize| (states[&number].0.as_str(), states[&number].1.as_str());
    assert!([1, 2, 7, 8].iter().all(|n| of(*n).0 == "done"), "{states:?}");
    for (number, reason) in [(3, "the student's gradient was not finite"), (4, "not finite"), (5, "refused: "), (6, "GB of memory")] {
        assert!(of(number).0 == "failed" && of(number).1.contains(reason), "{states:?}");
    }

    // Again: nothing to do, nothing touched.
    let kept = std::fs::metadata(scene.trial(1).join("report.json")).unwrap().modified().unwrap();
    let out = scene.sweep("run", &["--jobs", "2"]).expect(0);
    assert!(out.stdout.contains("0 done, 0 rungs reached, 0 failed"), "{}", out.stdout);
    assert_eq!(std::fs::metadata(scene.trial(1).join("report.json")).unwrap().modified().unwrap(), kept);

    scene.sweep("collect", &["--metric", "student.lss"]).expect(2).says(&["no report has `student.lss`", "student.loss"]);
    let page = scene.sweep("collect", &["--metric", "student.loss"]).expect(0).stdout;
    assert_eq!(page, std::fs::read_to_string(scene.dir().join("results.md")).unwrap());
    let losses = |a: usize, b: usize| [a, b].map(|n| report(&scene.trial(n), "/student/loss"));
    let line = |a: usize, b: usize| {
        let [x, y] = losses(a, b);
        format!("{:.4} ± {:.4} | 2 of 2 |", (x + y) / 2.0, ((x - y) / 2.0).abs() * 2f64.sqrt())
    };
    assert!(page.contains(&line(1, 2)) && page.contains(&line(7, 8)), "{} {}\n{page}", line(1, 2), line(7, 8));
    let at = |text: &str| page.find(text).unwrap();
    let smaller_first = losses(1, 2).iter().sum::<f64>() < losses(7, 8).iter().sum::<f64>();
    assert_eq!(at(&line(1, 2)) < at(&line(7, 8)), smaller_first, "{page}");
    assert!(at("| 2* |") > at(&line(7, 8)) && page.contains("0 of 2, 2 failed") && page.contains("2 of 4 points whole"), "{page}");

    let mut csv = csv::Reader::from_path(scene.dir().join("results.csv")).unwrap();
    let rows: Vec<BTreeMap<String, String>> = csv.deserialize().map(Result::unwrap).collect();
    let parquet = SerializedFileReader::new(std::fs::File::open(scene.dir().join("results.parquet")).unwrap()).unwrap();
    let binary: Vec<BTreeMap<String, Field>> =
        parquet.get_row_iter(None).unwrap().map(|row| row.unwrap().into_columns().into_iter().collect()).collect();
    assert_eq!((rows.len(), binary.len()), (8, 8));
    for number in [1, 2, 7, 8] {
        for (column, pointer) in [("report.student.top1", "/student/top1"), ("report.seconds.total", "/seconds/total")] {
            let want = report(&scene.trial(number), pointer);
            assert_eq!(rows[number - 1][column].parse::<f64>().unwrap(), want);
            assert_eq!(binary[number - 1][column], Field::Double(want));
        }
        assert_eq!(binary[number - 1]["seed"], Field::Long(if number % 2 == 1 { 3 } else { 4 }));
    }
    assert_eq!((rows[2]["state"].as_str(), rows[2]["report.student.top1"].as_str()), ("failed", ""));
    assert_eq!(binary[2]["report.student.top1"], Field::Null);

    // Retry: one by its number, then all; the log of the failure stays.
    let out = scene.sweep("retry", &["5"]).expect(0).stdout;
    assert!(out.contains("to be run again") && out.lines().count() == 1, "{out}");
    assert_eq!((scene.count("stopped"), scene.count("failed")), (1, 3));
    assert!(std::fs::read_to_string(scene.trial(5).join("trial-1.log")).unwrap().contains("GB of memory"));
    scene.sweep("retry", &[]).expect(0);
    assert_eq!((scene.count("stopped"), scene.count("failed"), scene.count("done")), (4, 0, 4));
    scene.sweep("run", &["--jobs", "2"]).expect(1);
    assert_eq!((scene.outcome(5)["launches"].as_u64(), scene.outcome(1)["launches"].as_u64()), (Some(2), Some(1)));
    scene.sweep("retry", &["99"]).expect(2).says(&["99 is no trial of this plan"]);
}

/// A plan is a function of its file; one that was extended keeps what was there, by number and folder.
#[test]
fn planning_again_keeps_trials() {
    let text = |lrs: &str| format!("repeats = 2\n---\n[axes]\nstudent.lr = [{lrs}]\n");
    let scene = Scene::planned(&text("0.1, 0.2"));
    let plan = || std::fs::read_to_string(scene.dir().join("plan.toml")).unwrap();
    let first = plan();
    let out = scene.plan().expect(0).stdout;
    assert!(plan() == first && out.contains("4 trials of 2 points, 0 of them new"), "{out}");
    let (one, three) = (scene.trial(1), scene.trial(3));
    scene.sweep("run", &["--jobs", "2", "--at-most", "2"]).expect(0);
    assert_eq!((scene.count("done"), scene.count("planned")), (2, 2));

    // In front, and in place of the second value, which comes back later.
    scene.write(&text("0.05, 0.1"));
    let out = scene.plan().expect(0).stdout;
    assert!(out.contains("4 trials of 2 points, 2 of them new"), "{out}");
    assert_eq!(scene.trial(1), one);
    assert_eq!((scene.count("done"), scene.count("planned")), (2, 2));
    assert!(scene.states().contains_key(&5) && !scene.states().contains_key(&3));
    scene.sweep("run", &["--jobs", "2"]).expect(0);
    scene.write(&text("0.05, 0.1, 0.2"));
    scene.plan().expect(0);
    assert_eq!(scene.count("done"), 4);
    // Its numbers were never used for anything: its folder may bear another, its hash is the same.
    let hash = |path: &Path| path.file_name().unwrap().to_str().unwrap()[5..].to_owned();
    assert!(plan().contains(&hash(&three)));

    // Where things lie and how they are saved is no other trial; what changes numbers is.
    let with = |set: &str| format!("{}\n[axes]\nstudent.lr = [0.05, 0.1, 0.2]\n", format_args!("repeats = 2\n---\n{set}"));
    scene.write(&with("checkpoint.keep = 5"));
    assert!(scene.plan().expect(0).stdout.contains("6 trials of 3 points, 0 of them new"));
    scene.write(&with("phi.gamma = 3.0"));
    assert!(scene.plan().expect(0).stdout.contains("6 trials of 3 points, 6 of them new"));
    // Tasks that wait for this sweep would run another's trials.
    let (other, before) = (scene.folder.path().join("other.toml"), plan());
    std::fs::copy(scene.file(), &other).unwrap();
    ssdkd(&["sweep", "plan", other.to_str().unwrap(), "--dir", scene.dir().to_str().unwrap()]).expect(2).says(&[
        "has the plan of ",
        "tiny.toml",
        "name another --dir, or remove ",
    ]);
    assert!(plan() == before);
}

/// A comparison on another method's length is run, with a word of it; images to train on have to be there.
#[test]
fn methods_that_real_images_or_many_rounds_are_missing_for() {
    let scene =
        Scene::new("[axes]\nvariant = [{ name = \"a\", method = \"dfq\" }, { name = \"b\", method = \"kd\", train.warmup_rounds = 0 }]\n");
    scene.plan().expect(0).says(&["warning, 1 of 2 trials: train.rounds: 4 rounds; dfq is published with "]);
    std::fs::remove_file(scene.folder.path().join("data/train-images-idx3-ubyte")).unwrap();
    scene.plan().expect(2).says(&[
        "data.dir: ",
        "train-images-idx3-ubyte",
        "needed by what trains on real images",
        "the first with method=\"kd\"",
    ]);
}

/// Every finding of every trial at once, with the axis it is of; nothing is written.
#[test]
fn what_cannot_run_is_refused_when_it_is_planned() {
    for (rest, says) in [
        (
            "[axes]\nstudent.lrr = [0.1]\nreplay.alpha = [0.5, -1, -2]\n",
            &["student.lrr: unknown key (from this sweep); did you mean `student.lr`?", "axis `student.lrr`, 3 of 3 trials"][..],
        ),
        (
            "[axes]\nreplay.alpha = [0.5, -1]\ndistill.batch_size = [32, 33]\n",
            &[
                "2 settings are refused",
                "replay.alpha: -1 is negative or not a number (axis `replay.alpha`, 2 of 4 trials, the first with replay.alpha=-1 distill.batch_size=32 seed=0",
                "distill.batch_size: 33 rows cannot be shared by 2 logical ranks: use 32 or 34 (axis `distill.batch_size`",
            ][..],
        ),
        (
            "[axes]\nphi.gamma = [1]\n[resources]\nranks = 4\n",
            &["parallel.logical_ranks: 4 ranks were launched, which does not divide the 2 logical ranks"],
        ),
        (
            "[axes]\nstudent.model = [\"wrn16_9\"]\n",
            &["student.model: \"wrn16_9\" is none of", "did you mean `wrn16_2`?", "axis `student.model`"],
        ),
        ("[axes]\nteacher.weights = [\"nowhere.pth\"]\n", &["teacher.weights: ", "nowhere.pth: no such file (axis `teacher.weights`"]),
        ("[axes]\nphi.gamma = [1]\n[halving]\nrungs = [3]\n", &["halving.rungs: round 3 is not evaluated"]),
        (
            "[axes]\nphi.gamma = [1]\n[halving]\nrungs = [2]\nmetric = \"top1\"\n",
            &["halving.metric: `top1` is no column of metrics.csv, which has round,"],
        ),
        (
            "[axes]\nphi.gamma = [1]\n[halving]\nrungs = [2]\nmetric = \"student_miou\"\n",
            &["halving.metric: `student_miou` is no number of runs on fashion_mnist, which are scored by `student_top1`"],
        ),
        (
            "metric = \"student.miou\"\n---\n[axes]\nphi.gamma = [1]\n",
            &["metric: no report will have a number `student.miou`: there are ranks,", "student.top1_best, seconds.total,"],
        ),
        (
            "metric = \"teacher.top1\"\ncommand = \"teach\"\n---\n[axes]\nteach.lr = [0.1]\n",
            &["no report will have a number `teacher.top1`"],
        ),
        (
            "metric = \"buffer.capacity\"\n---\n[axes]\nmethod = [\"ssd_kd\", \"dafl\"]\n",
            &["no report will have a number `buffer.capacity`", "(1 of 2 trials, the first with method=\"dafl\""],
        ),
        (
            "[axes]\ndataset = [\"fashion_mnist\", \"none\"]\n",
            &["metric: is left out, but trials are scored differently (student.top1, student.agreement)"],
        ),
        (
            "dataset = \"none\"\n[axes]\nphi.gamma = [1]\n[halving]\nrungs = [2]\nmetric = \"student_loss\"\n",
            &["halving.metric: `student_loss` is no number of runs on none, which are scored by `student_agreement`"],
        ),
        ("[axes]\nphi.gamma = [1]\n[halving]\nrungs = [2, 8]\n", &["halving.rungs: come to rounds [2, 8, 4]"]),
        ("[axes]\ncheckpoint.signals = [[\"term\"]]\n", &["checkpoint.signals: lacks \"usr1\""]),
        ("[axes]\nseed = [1, 2]\n", &["axes.seed: repeats over seeds are not an axis"]),
        (
            "[axes]\nphi.gamma = { values = [1, 2], when = { phi.dificulty = \"focal\" } }\n",
            &["phi.dificulty: unknown key (from `when` of axis `phi.gamma`); did you mean `phi.difficulty`?"],
        ),
        (
            "[axes]\nvariant = [{ name = \"a\" }, { name = \"b\", replay.draw = \"uniform\" }]\n\
             phi.gamma = { values = [1, 2], when = { variant = \"c\" } }\n",
            &["axes.phi.gamma: its `when` asks for variant = \"c\", which no trial has: \"a\", \"b\""],
        ),
        ("strategy = \"sobol\"\n---\n[axes]\nphi.gamma = [1]\n", &["trials: is left out"]),
        (
            "[axes]\nphi.gamma = [1]\n[resources]\nnodes = 2\ntime = \"00:05:00\"\n",
            &["resources.nodes: is more than resources.ranks", "resources.time: leaves no time to compute"],
        ),
        ("[axes]\ndata.dir = [\"nowhere\"]\n", &["data.dir: ", "nowhere: no such folder"]),
        ("[axes]\nphi.gamma = [1]\n[resources]\nrank = 2\n", &["tiny.toml: line", "unknown field `rank`"]),
    ] {
        let scene = Scene::new(rest);
        scene.plan().expect(2).says(says);
        assert!(!scene.dir().exists(), "{rest}");
    }
}

/// What runs are scored by is known when they are planned; any other number that all their reports have may be named.
#[test]
fn a_plan_names_its_metrics() {
    for (rest, says) in [
        ("[axes]\nphi.gamma = [1]\n", "metric = \"student.top1\""),
        ("metric = \"seconds.total\"\n---\n[axes]\ndataset = [\"fashion_mnist\", \"none\"]\n", "metric = \"seconds.total\""),
        ("metric = \"buffer.capacity\"\n---\n[axes]\nmethod = [\"ssd_kd\", \"fast\", \"cmi\"]\n", "metric = \"buffer.capacity\""),
        ("dataset = \"none\"\n[axes]\nphi.gamma = [1]\n", "metric = \"student.agreement\""),
        ("dataset = \"none\"\n[axes]\nphi.gamma = [1]\n[halving]\nrungs = [2]\n", "metric = \"student_agreement\""),
        // What is better when smaller is known from its name.
        ("metric = \"student.loss\"\n---\n[axes]\nphi.gamma = [1]\n", "metric = \"student.loss\"\ngoal = \"min\""),
        ("[axes]\nphi.gamma = [1]\n[halving]\nmetric = \"loss_student\"\nrungs = [2]\n", "metric = \"loss_student\"\ngoal = \"min\""),
        ("metric = \"student.loss\"\ngoal = \"max\"\n---\n[axes]\nphi.gamma = [1]\n", "metric = \"student.loss\"\ngoal = \"max\""),
    ] {
        let scene = Scene::planned(rest);
        let plan = std::fs::read_to_string(scene.dir().join("plan.toml")).unwrap();
        assert!(plan.contains(says), "{rest}: {plan}");
    }
}

/// Points that come out alike are one, and that is said; a condition can ask for the name of an axis' value.
#[test]
fn points_that_are_left_out_are_counted() {
    let axes = "replay.draw = [\"priority\", \"uniform\"]\nphi.gamma = [1, 2]\n";
    let scene = Scene::new(&format!("strategy = \"sobol\"\ntrials = 40\n---\n[axes]\n{axes}"));
    let said = scene.plan().expect(0).stdout;
    assert!(said.contains("4 trials of 4 points, 4 of them new"), "{said}");
    assert!(said.contains("36 points were drawn again and are left out"), "{said}");
    let axes =
        "variant = [{}, { name = \"even\", replay.draw = \"uniform\" }]\nphi.gamma = { values = [1, 2], when = { variant = \"even\" } }\n";
    scene.write(&format!("[axes]\n{axes}"));
    let said = scene.plan().expect(0).stdout;
    assert!(said.contains("3 trials of 3 points") && !said.contains("left out"), "{said}");
}

/// The user's Ctrl-C, and a scheduler's TERM: what runs saves itself; the next runner goes on with it, to the same end. Meanwhile each trial
/// has cores of its own.
#[test]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let scene = Scene::planned("repeats = 2\n---\ntrain.rounds = 12\n[axes]\nstudent.lr = [0.1]\n");
    let runner = scene.runner(&["--jobs", "2"]);
    let frozen = [1, 2].map(|number| Frozen::at_first_checkpoint(&scene.trial(number)));
    let cores = [1, 2].map(|number| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", holder(&scene.trial(number)))).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    });
    if std::thread::available_parallelism().unwrap().get() > 1 {
        assert_ne!(cores[0], cores[1]);
    }
    assert_eq!(scene.count("running"), 2);
    // Another runner finds nothing, and retry leaves what lives alone, named or not.
    let none = scene.sweep("run", &[]).expect(0).stdout;
    assert!(none.contains("0 done") && none.contains("2 trials are taken by other runners"), "{none}");
    for named in [&[][..], &["1"]] {
        assert!(scene.sweep("retry", named).expect(0).stdout.contains("left alone: a process of its run is alive"));
    }
    runner.signal(libc::SIGINT);
    drop(frozen);
    assert_eq!(runner.ends(), Some(75));
    assert_eq!(scene.count("stopped"), 2);
    scene.sweep("run", &["--jobs", "2"]).expect(0);
    for (number, seed) in [(1, 0), (2, 1)] {
        assert!(std::fs::read_to_string(scene.trial(number).join("trial.log")).unwrap().contains("resumed at step"));
        assert_eq!(checksums(&scene.trial(number)).unwrap().to_vec(), scene.undisturbed(number, seed, &["student.lr=0.1"]));
        assert_eq!(scene.outcome(number)["launches"], 2);
    }
}

/// A trial that is killed (as when memory runs out) is failed and the next one begins; a runner that is killed leaves its claim, which is
/// taken over when nothing of it lives any more and the user asks for it.
#[test]
fn killed_trials_and_killed_runners_are_told_apart() {
    let scene = Scene::planned("repeats = 2\n---\ntrain.rounds = 12\n[axes]\nstudent.lr = [0.1]\n");
    let runner = scene.runner(&["--jobs", "1"]);
    let frozen = Frozen::at_first_checkpoint(&scene.trial(1));
    kill(holder(&scene.trial(1)));
    drop(frozen);
    let frozen = Frozen::at_first_checkpoint(&scene.trial(2));
    let states = scene.states();
    assert!(states[&1].0 == "failed" && states[&1].1.contains("killed by signal 9 (SIGKILL): out of memory"), "{states:?}");
    // Stopped processes that lose their parent are sent a HUP.
    drop(frozen);
    runner.signal(libc::SIGKILL);
    runner.ends();
    let frozen = Frozen::at_first_checkpoint(&scene.trial(2));
    let states = scene.states();
    assert!(states[&2].0 == "running" && states[&2].1.contains("its runner is dead"), "{states:?}");
    let alive = scene.sweep("retry", &["2"]).expect(0).stdout;
    assert!(alive.contains("left alone: a process of its run is alive"), "{alive}");
    kill(holder(&scene.trial(2)));
    drop(frozen);
    // Never by itself.
    assert!(scene.sweep("run", &[]).expect(0).stdout.contains("0 done"));
    let out = scene.sweep("retry", &[]).expect(0).stdout;
    assert!(out.contains("failed (killed by signal 9") && out.contains("free again: its runner is dead"), "{out}");
    scene.sweep("run", &["--jobs", "2"]).expect(0);
    assert_eq!(scene.count("done"), 2);
    assert_eq!(checksums(&scene.trial(1)).unwrap().to_vec(), scene.undisturbed(1, 0, &["student.lr=0.1"]));
    assert!(scene.trial(1).join("trial-1.log").exists());
}

#[test]
fn several_runners_share_a_sweep() {
    let scene = Scene::planned("repeats = 2\n---\n[axes]\nstudent.lr = [0.1, 0.15, 0.2]\n");
    let runners: Vec<Runner> = (0..3).map(|_| scene.runner(&["--jobs", "1"])).collect();
    assert!(runners.into_iter().all(|runner| runner.ends() == Some(0)));
    assert_eq!(scene.count("done"), 6);
    (1..=6).for_each(|number| assert_eq!(scene.outcome(number)["launches"], 1, "trial {number}"));
}

/// Teachers can be swept like students.
#[test]
fn teachers_are_swept() {
    let scene = Scene::planned("command = \"teach\"\n---\nteach.epochs = 2\nteach.batch_size = 16\n[axes]\nteach.lr = [0.05, 0.1]\n");
    scene.sweep("run", &["--jobs", "2"]).expect(0);
    let page = scene.sweep("collect", &[]).expect(0).stdout;
    for (number, lr) in [(1, "0.05"), (2, "0.1")] {
        let line = format!("| {number} | {lr} | {:.4} | 1 of 1 |", report(&scene.trial(number), "/student/top1"));
        assert!(page.contains(&line), "{line}\n{page}");
    }
}

/// A method brings its published values along, below what the sweep says; trials run with what was planned.
#[test]
fn methods_are_compared() {
    let scene = Scene::planned("---\ndistill.label_weight = 0.5\n[axes]\nmethod = [\"fast_meta\", \"scratch\", \"kd\"]\n");
    scene.sweep("run", &["--jobs", "2"]).expect(0);
    for (number, method) in [(1, "fast_meta"), (2, "scratch"), (3, "kd")] {
        let text = std::fs::read_to_string(scene.trial(number).join("config.toml")).unwrap();
        let run: toml::Table = text.parse().unwrap();
        assert_eq!(run["method"].as_str(), Some(method));
        let (sections, files) = (["student", "inversion", "distill"], [root().join("configs/fashion_mnist/demo.toml")]);
        let given = |key: &str, value: toml::Value| (key.to_owned(), value);
        let alone = ssdkd::config::load_with(&files, [given("method", method.into())].into(), "here").unwrap().config;
        let alone = toml::Table::try_from(alone).unwrap();
        for key in sections.iter().flat_map(|s| alone[*s].as_table().unwrap().keys().map(move |k| (*s, k.clone()))) {
            let said =
                ["inversion.steps", "inversion.batch_size", "distill.batch_size", "distill.steps_per_round", "distill.teacher_views"];
            let name = format!("{}.{}", key.0, key.1);
            if !said.contains(&name.as_str()) && name != "distill.label_weight" {
                assert_eq!(run[key.0].get(&key.1), alone[key.0].get(&key.1), "{method}: {name}");
            }
        }
        assert_eq!(run["distill"]["label_weight"].as_float(), Some(0.5));
    }
}

#[test]
fn trials_run_on_ranks() {
    if !has_mpirun() {
        return;
    }
    let scene = Scene::planned("[axes]\nstudent.lr = [0.1]\n");
    scene.sweep("run", &["--ranks", "3"]).expect(2).says(&["3 ranks were launched, which does not divide the 2 logical ranks"]);
    scene.sweep("run", &["--ranks", "2", "--jobs", "1"]).expect(0);
    assert_eq!(report(&scene.trial(1), "/ranks"), 2.0);
    assert_eq!(checksums(&scene.trial(1)).unwrap().to_vec(), scene.undisturbed(1, 0, &["student.lr=0.1"]));
}

/// Trials compete at a rung, and the better half goes on, with the numbers of runs that were never paused.
#[test]
fn halving_stops_the_worse_half_and_finishes_the_better() {
    let halving = "[halving]\nmetric = \"loss_student\"\ngoal = \"min\"\nrungs = [2]\nfactor = 2\n";
    let scene = Scene::planned(&format!("[axes]\nstudent.lr = [0.001, 0.2, 0.002, 0.05]\n{halving}"));
    // One at a time: all four come to the rung or go on by then, in an order that anyone can follow.
    scene.sweep("run", &["--jobs", "1"]).expect(0);
    let rungs: Vec<f64> = (1..=4).map(|number| scene.outcome(number)["rungs"][0].as_f64().unwrap()).collect();
    for (i, value) in rungs.iter().enumerate() {
        let rows: Vec<RoundRecord> = read_table(&scene.trial(i + 1).join("metrics.csv")).unwrap();
        assert_eq!(rows[1].loss_student, Some(*value));
    }
    // By hand: after two trials the better goes on at once, after four the best two have.
    let better = |a: usize, b: usize| if rungs[a] <= rungs[b] { a } else { b };
    let mut order: Vec<usize> = (0..4).collect();
    order.sort_by(|a, b| rungs[*a].total_cmp(&rungs[*b]));
    let expected: BTreeSet<usize> = [better(0, 1), order[0], order[1]].into();
    for (number, (state, _)) in scene.states() {
        assert_eq!(state, if expected.contains(&(number - 1)) { "done" } else { "paused" }, "trial {number}: {rungs:?}");
        let rows: Vec<RoundRecord> = read_table(&scene.trial(number).join("metrics.csv")).unwrap();
        assert_eq!(rows.len(), if state == "done" { 4 } else { 2 });
    }
    let lr = ["student.lr=0.001", "student.lr=0.2", "student.lr=0.002", "student.lr=0.05"][order[0]];
    assert_eq!(checksums(&scene.trial(order[0] + 1)).unwrap().to_vec(), scene.undisturbed(order[0] + 1, 0, &[lr]));
    let csv = scene.sweep("collect", &[]).map_csv(&scene);
    assert!(csv.iter().all(|row| row["rung.1"].parse::<f64>().is_ok()));
    // Nothing is left to do.
    assert!(scene.sweep("run", &[]).expect(0).stdout.contains("0 done, 0 rungs"));
}

impl Outcome {
    fn map_csv(self, scene: &Scene) -> Vec<BTreeMap<String, String>> {
        self.expect(0);
        csv::Reader::from_path(scene.dir().join("results.csv")).unwrap().deserialize().map(Result::unwrap).collect()
    }
}

/// A run that pauses between rounds and goes on is the run that never did, on any number of ranks.
#[test]
fn a_run_pauses_at_a_round_and_goes_on() {
    let scene = Scene::planned("[axes]\nstudent.lr = [0.1]\n");
    let want = scene.undisturbed(1, 0, &["student.lr=0.1"]);
    let plan = std::fs::read_to_string(scene.dir().join("plan.toml")).unwrap();
    let config = scene.dir().join(plan.lines().find_map(|line| line.strip_prefix("config = \"")).unwrap().trim_end_matches('"'));
    let dir = scene.folder.path().join("paused");
    let arguments = |until: &[&str]| -> Vec<String> {
        let words = ["train", "--config", config.to_str().unwrap(), "--set", "student.lr=0.1", "--run-dir", dir.to_str().unwrap()];
        words.iter().chain(until).map(|word| (*word).to_owned()).collect()
    };
    let state = || ssdkd(&["inspect", "--status", dir.to_str().unwrap()]).expect(0).stdout.trim().to_owned();
    let rounds = || read_table::<RoundRecord>(&dir.join("metrics.csv")).unwrap().len();
    let ranks = if has_mpirun() { 2 } else { 1 };
    let paused = |ranks: usize, until: &str| {
        let words = arguments(&["--until-round", until]);
        if ranks == 1 { ssdkd(&words) } else { ssdkd_on(ranks, &words) }
    };
    paused(ranks, "2").expect(0);
    assert_eq!((state().as_str(), rounds(), dir.join("report.json").exists()), ("paused", 2, false));
    paused(1, "1").expect(0);
    assert_eq!((state().as_str(), rounds()), ("paused", 2));
    paused(1, "3").expect(0);
    assert_eq!(rounds(), 3);
    ssdkd(&arguments(&[])).expect(0);
    assert_eq!((state().as_str(), checksums(&dir).unwrap().to_vec()), ("finished", want));
}

/// Where several trials share a GPU, NVIDIA's service runs as long as they do, and they are told of both.
#[test]
fn trials_that_share_a_gpu_share_it_through_mps() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::planned("repeats = 2\n---\n[axes]\nstudent.lr = [0.1]\n[resources]\ntrials_per_gpu = 2\n");
    let (bin, said) = (scene.folder.path().join("bin"), scene.folder.path().join("said"));
    std::fs::create_dir(&bin).unwrap();
    let control = bin.join("nvidia-cuda-mps-control");
    let script = |text: &str| {
        std::fs::write(&control, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&control, PermissionsExt::from_mode(0o755)).unwrap();
    };
    let runner = || {
        let mut command = scene.command("run", &[]);
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).env("CUDA_VISIBLE_DEVICES", "7");
        command
    };
    // It sees all GPUs: the number 7 means the same to it and to the trials.
    let tells = "(echo \"$@\"; [ -n \"$1\" ] || cat; echo $CUDA_MPS_PIPE_DIRECTORY; echo sees ${CUDA_VISIBLE_DEVICES-all})";
    script(&format!("{tells} >> {}", said.display()));
    let mut command = runner();
    let running = Runner(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let frozen = [1, 2].map(|number| Frozen::at_first_checkpoint(&scene.trial(number)));
    let before = std::fs::read_to_string(&said).unwrap();
    let pipe = before.lines().nth(1).unwrap();
    for number in [1, 2] {
        let environment = std::fs::read(format!("/proc/{}/environ", holder(&scene.trial(number)))).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        for wanted in ["CUDA_VISIBLE_DEVICES=7".to_owned(), format!("CUDA_MPS_PIPE_DIRECTORY={pipe}")] {
            assert!(environment.split('\0').any(|variable| variable == wanted), "{wanted}");
        }
    }
    assert!(before.starts_with("-d\n") && before.contains("sees all") && !before.contains("quit"), "{before}");
    drop(frozen);
    assert_eq!(running.ends(), Some(0));
    assert!(std::fs::read_to_string(&said).unwrap().contains("quit"));
    // Where it does not start, trials run without it; here they are done.
    script("exit 1");
    run(runner(), DEADLINE).expect(0).says(&["warning: nvidia-cuda-mps-control -d ended with exit status: 1"]);
}

/// Ranks that could not have a GPU each are told so before anything starts; Slurm is asked for as many as there are ranks.
#[test]
fn a_trial_wants_a_gpu_for_every_rank() {
    let scene = Scene::planned("device = \"cuda\"\n[axes]\nstudent.lr = [0.1]\n[resources]\nranks = 2\n");
    let mut command = scene.command("run", &[]);
    command.env("CUDA_VISIBLE_DEVICES", "0");
    run(command, DEADLINE).expect(2).says(&["device: a trial wants 2 of the GPUs", "there are 1", "parallel.share_gpu = true"]);
    assert!(!scene.trial(1).exists());
    let asked = |more: &[&str]| scene.sweep("submit", &[&["--dry-run"], more].concat()).expect(0).stdout;
    assert!(asked(&[]).contains("#SBATCH --gpus-per-node=2\n"));
    assert!(asked(&["--ranks", "1"]).contains("#SBATCH --gpus-per-node=1\n"));
    scene.write("device = \"cuda\"\nparallel.share_gpu = true\n[axes]\nstudent.lr = [0.1]\n[resources]\nranks = 2\n");
    scene.plan().expect(0);
    assert!(asked(&[]).contains("#SBATCH --gpus-per-node=1\n"));
    scene.write("device = \"cpu\"\n[axes]\nstudent.lr = [0.1]\n[resources]\nranks = 2\n");
    scene.plan().expect(0);
    assert!(!asked(&[]).contains("gpus"));
}

/// The batch file of docs/sweeps.md, as `submit` writes it.
#[test]
fn the_shipped_batch_file_is_what_submit_prints() {
    let array = Array {
        tasks: 8,
        throttle: Some(4),
        packed: 2,
        at_most: Some(2),
        ranks: 1,
        gpus: None,
        resources: Resources { threads: Some(1), time: Some("01:00:00".into()), ..Resources::default() },
        name: "sweep-student-0123abcd-x2".into(),
        folder: "/shared/me/runs/student".into(),
        program: "/shared/me/ssdkd/target/release/ssdkd".into(),
    };
    check("launch/slurm/sweep.sbatch", &array.text());
}

/// Of the first array that `submit` says it has submitted.
fn job_id(said: &str) -> String {
    said.strip_prefix("job ").and_then(|rest| rest.split(':').next()).unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// A real array: two trials of two ranks packed into a task, throttled, one task stopped and requeued on its way; submitting again submits nothing while it is queued,
/// nor when it is done.
#[test]
fn a_job_array_runs_a_sweep() {
    let Some(cluster) = cluster() else { return };
    let resources = "[resources]\nranks = 2\nthreads = 1\ntrials_per_node = 2\nthrottle = 1\nsignal_s = 30\n";
    let scene = Scene::planned(&format!("repeats = 2\n---\n[axes]\nstudent.lr = [0.1, 0.2]\n{resources}"));
    let dir = scene.dir().display().to_string();
    let submit =
        |more: &[&str]| cluster.slurm.call(env!("CARGO_BIN_EXE_ssdkd"), &[&["sweep", "submit", &dir], more].concat()).expect(0).stdout;
    assert!(submit(&["--dry-run"]).contains("#SBATCH --array=0-1%1\n"));
    let id = job_id(&submit(&[]));
    let tasks = [0, 1].map(|task| cluster.slurm.job(&format!("{id}_{task}"), &scene.dir().join(format!("jobs/{id}_{task}.log"))));
    let frozen = [1, 2].map(|number| Frozen::at_first_checkpoint(&scene.trial(number)));
    let states = scene.states();
    assert!(states[&1].0 == "running" && states[&1].1.contains("Slurm job "), "{states:?}");
    assert!(!scene.trial(3).exists(), "one task at a time");
    let again = submit(&[]);
    assert!(again.contains("nothing to submit: 2 trials are open, tasks for 2 are in the queue"), "{again}");
    tasks[0].signal(&["--batch", "--signal=USR1"]);
    tasks[0].says("USR1: the run is asked to save and stop");
    drop(frozen);
    tasks[0].is_requeued();
    for task in &tasks {
        assert_eq!(task.ends(), "COMPLETED", "{}", task.log());
    }
    assert_eq!(scene.count("done"), 4);
    assert!(submit(&[]).contains("nothing to submit: 0 trials are open"));
    let interrupted: Vec<usize> = (1..=4).filter(|number| scene.outcome(*number)["launches"] == 2).collect();
    assert_eq!(interrupted, [1, 2], "those that were running when the signal came, and no others");
    assert_eq!(checksums(&scene.trial(1)).unwrap().to_vec(), scene.undisturbed(1, 0, &["student.lr=0.1"]));
}

/// The site's limit (3 here) cuts the sweep in two; a throttle holds over both, and over what is submitted while one of them runs.
#[test]
fn arrays_of_a_throttled_sweep_follow_each_other() {
    let Some(cluster) = cluster() else { return };
    let scene = Scene::planned("---\n[axes]\nstudent.lr = [0.1, 0.2, 0.3, 0.4]\n[resources]\nthreads = 1\nthrottle = 3\n");
    let dir = scene.dir().display().to_string();
    let submit = || {
        let said = cluster.slurm.call(env!("CARGO_BIN_EXE_ssdkd"), &["sweep", "submit", &dir]).expect(0).stdout;
        let array =
            |line: &str| Some(line.strip_prefix("job ")?.split_once(": ").map(|(id, rest)| (id.to_owned(), rest[..7].to_owned())).unwrap());
        said.lines().filter_map(array).collect::<Vec<_>>()
    };
    // An array of one task bears its job's number.
    let task = |id: &str| cluster.slurm.job(id, &scene.dir().join(format!("jobs/{id}_0.log")));
    let arrays = submit();
    assert_eq!(arrays.iter().map(|(_, tasks)| tasks.as_str()).collect::<Vec<_>>(), ["3 tasks", "1 tasks"]);
    let (first, second) = (&arrays[0].0, &arrays[1].0);
    let frozen = [1, 2, 3].map(|number| Frozen::at_first_checkpoint(&scene.trial(number)));
    let waits = format!("afterany:{first}");
    let second = task(second);
    assert!(second.field("Dependency").starts_with(&waits), "{}", second.field("Dependency"));
    // Cancels it.
    drop(second);
    let again = submit();
    assert_eq!(again.len(), 1);
    let last = task(&again[0].0);
    assert!(last.field("Dependency").starts_with(&waits), "{}", last.field("Dependency"));
    assert!(!scene.trial(4).exists());
    drop(frozen);
    assert_eq!(last.ends(), "COMPLETED", "{}", last.log());
    assert_eq!(scene.count("done"), 4);
}

/// A halving as a real array: two tasks at a time share four trials and each other's rungs.
#[test]
fn a_job_array_halves_a_sweep() {
    let Some(cluster) = cluster() else { return };
    let tables = "[halving]\nmetric = \"loss_student\"\ngoal = \"min\"\nrungs = [4]\nfactor = 2\n[resources]\nthreads = 1\nthrottle = 2\nsignal_s = 30\n";
    let scene = Scene::planned(&format!("---\ntrain.rounds = 8\n[axes]\nstudent.lr = [0.001, 0.2, 0.002, 0.05]\n{tables}"));
    let dir = scene.dir().display().to_string();
    let submit = || cluster.slurm.call(env!("CARGO_BIN_EXE_ssdkd"), &["sweep", "submit", &dir]).expect(0).stdout;
    let id = job_id(&submit());
    let tasks = [0, 1].map(|task| cluster.slurm.job(&format!("{id}_{task}"), &scene.dir().join(format!("jobs/{id}_{task}.log"))));
    for task in &tasks {
        assert_eq!(task.ends(), "COMPLETED", "{}", task.log());
    }
    let outcomes: Vec<Value> = (1..=4).map(|number| scene.outcome(number)).collect();
    let rungs: Vec<f64> = outcomes.iter().map(|outcome| outcome["rungs"][0].as_f64().unwrap()).collect();
    let mut order: Vec<usize> = (0..4).collect();
    order.sort_by(|a, b| rungs[*a].total_cmp(&rungs[*b]));
    let states = scene.states();
    let state = |trial: usize| states[&(trial + 1)].0.as_str();
    // The third may have been among the best half of those before it, the last of four cannot.
    assert_eq!([order[0], order[1], order[3]].map(state), ["done", "done", "paused"], "{rungs:?} {states:?}");
    let lr = ["student.lr=0.001", "student.lr=0.2", "student.lr=0.002", "student.lr=0.05"][order[0]];
    assert_eq!(checksums(&scene.trial(order[0] + 1)).unwrap().to_vec(), scene.undisturbed(order[0] + 1, 0, &["train.rounds=8", lr]));
    assert!(submit().contains("nothing to submit: 0 trials are open"));
}

/// A job that Slurm has lost leaves a claim; Slurm is asked once, and the trial is free.
#[test]
fn a_claim_of_a_job_that_is_gone_is_freed() {
    let Some(cluster) = cluster() else { return };
    let scene = Scene::planned("---\ntrain.rounds = 12\n[axes]\nstudent.lr = [0.1]\n");
    let dir = scene.dir().display().to_string();
    let call = |words: &[&str]| cluster.slurm.call(env!("CARGO_BIN_EXE_ssdkd"), words).expect(0).stdout;
    let id = job_id(&call(&["sweep", "submit", &dir]));
    let task = cluster.slurm.job(&format!("{id}_0"), &scene.dir().join(format!("jobs/{id}_0.log")));
    has_checkpoint(&scene.trial(1));
    // As of another host, where no process can be asked after.
    let claim = scene.trial(1).join("claim");
    let held = std::fs::read_to_string(&claim).unwrap();
    let value: Value = serde_json::from_str(&held).unwrap();
    std::fs::write(&claim, held.replace(value["machine"].as_str().unwrap(), "elsewhere")).unwrap();
    assert!(call(&["sweep", "retry", &dir]).contains("left alone"));
    // The runner first, which has no moment to give anything up.
    kill(value["process"].as_i64().unwrap() as i32);
    kill(holder(&scene.trial(1)));
    assert_eq!(task.ends(), "FAILED", "{}", task.log());
    assert_eq!(scene.count("running"), 1);
    let said = call(&["sweep", "retry", &dir]);
    assert!(said.contains("free again: its Slurm job has ended"), "{said}");
    assert_eq!(scene.count("stopped"), 1);
}

/// A thousand trials, planned, looked at and collected; what fails or is missing is counted, the rest is averaged.
#[test]
fn a_thousand_trials_are_counted_and_averaged() {
    let axes = "student.lr = { min = 1e-3, max = 1.0, scale = \"log\" }\nphi.gamma = { min = 0, max = 4 }\n";
    let scene = Scene::planned(&format!("strategy = \"sobol\"\ntrials = 250\nrepeats = 4\n---\n[axes]\n{axes}"));
    let top1 = |number: usize| (number * 37 % 1000) as f64 / 1000.0;
    let state = ssdkd::run_folder::Status { state: ssdkd::run_folder::State::Finished, ..Default::default() };
    for number in 1..=1000 {
        let run = scene.trial(number);
        std::fs::create_dir_all(&run).unwrap();
        if number % 10 == 0 {
            std::fs::write(run.join("outcome.json"), r#"{"ended": "failed", "reason": "why", "launches": 1, "seconds": 1.0, "at": 0}"#)
                .unwrap();
        } else if number % 10 != 5 {
            state.write(&run).unwrap();
            std::fs::write(run.join("report.json"), format!("{{\"student\": {{\"top1\": {}}}}}", top1(number))).unwrap();
        }
    }
    let out = scene.sweep("status", &[]).expect(0);
    assert!(out.stdout.starts_with("sweep: 1000 trials: 800 done, 100 failed, 100 planned\n"), "{}", &out.stdout[..200]);
    let page = scene.sweep("collect", &[]).expect(0).stdout;
    assert!(page.contains("800 of 1000 trials done; 50 of 250 points whole."), "{}", &page[..200]);
    // Point 1: trials 1 to 4. Point 2: 6 to 8, the fifth being planned.
    let of = |trials: &[usize]| {
        let mean = trials.iter().map(|n| top1(*n)).sum::<f64>() / trials.len() as f64;
        let squares = trials.iter().map(|n| top1(*n).powi(2)).sum::<f64>() - trials.len() as f64 * mean * mean;
        (mean, format!("{mean:.4} ± {:.4}", (squares / (trials.len() - 1) as f64).sqrt()))
    };
    let line = |point: &str| page.lines().find(|line| line.starts_with(point)).unwrap();
    assert!(line("| 1 |").contains(&format!("{} | 4 of 4 |", of(&[1, 2, 3, 4]).1)), "{}", line("| 1 |"));
    assert!(line("| 2* |").contains(&format!("{} | 3 of 4, 1 planned |", of(&[6, 7, 8]).1)), "{}", line("| 2* |"));
    let means: Vec<f64> = page.lines().filter_map(|line| line.split(" | ").nth(3)?.split(" ± ").next()?.parse().ok()).collect();
    assert!(means.len() == 250 && means.is_sorted_by(|a, b| a >= b), "best first");
    assert_eq!(csv::Reader::from_path(scene.dir().join("results.csv")).unwrap().records().count(), 1000);
}

/// The shipped example is a plan, and its head shows how.
#[test]
fn the_shipped_sweep_can_be_planned() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root().join("configs/fashion_mnist/sweeps")).unwrap() {
        let file = entry.unwrap().path();
        let dir = folder.path().join(file.file_stem().unwrap());
        ssdkd(&["sweep", "plan", file.to_str().unwrap(), "--dir", dir.to_str().unwrap()]).expect(0);
        let head = format!("ssdkd sweep plan {}", file.strip_prefix(root()).unwrap().display());
        assert!(std::fs::read_to_string(&file).unwrap().contains(&head), "{}", file.display());
    }
}

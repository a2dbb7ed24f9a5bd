//! Studies on runs of about a second.

use crate::launch::{has_mpirun, root, small_fashion_mnist, ssdkd, tiny};
use crate::methods::is_self_contained;
use std::path::{Path, PathBuf};

/// `--config …` of a tiny run, and the folder of everything.
struct Scene {
    folder: tempfile::TempDir,
    base: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut base = tiny(&small_fashion_mnist(&data, 32), Path::new("unused"));
        // Without the command at its head and the run folder at its end.
        base.drain(..1);
        base.truncate(base.len() - 2);
        base.extend(["--set", "train.rounds=2", "--set", "parallel.logical_ranks=2", "--set", "parallel.threads=1"].map(str::to_owned));
        Self { folder, base }
    }

    fn study(&self, kind: &str, more: &[&str]) -> (String, PathBuf) {
        let dir = self.folder.path().join(kind);
        let mut words = vec!["study".to_owned(), kind.to_owned()];
        words.extend(self.base.iter().cloned());
        words.extend(["--dir".to_owned(), dir.display().to_string()]);
        words.extend(more.iter().map(|word| (*word).to_owned()));
        (ssdkd(&words).expect(0).stdout, dir)
    }
}

fn page(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("study.md")).unwrap()
}

/// Values of a column of the only table of a page.
fn column(page: &str, name: &str) -> Vec<String> {
    let mut rows =
        page.lines().filter(|line| line.starts_with('|')).map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let at = rows.next().unwrap().iter().position(|head| *head == name).unwrap_or_else(|| panic!("{name}: {page}"));
    rows.skip(1).map(|row| row[at].to_owned()).collect()
}

/// The page about a study's runs: it begins with the study's own table, whose head this is, and plot, and goes on with what every page has.
fn report(dir: &Path, head: &[&str]) -> String {
    let html = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(is_self_contained(&html), "{}", dir.display());
    let head: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    let places = [head.as_str(), "The same as a plot</figcaption><svg", "<h2>Runs</h2>", "<h2>Curves</h2>", "Where the time went"];
    let places = places.map(|part| html.find(part).unwrap_or_else(|| panic!("{part} is not on the page of {}", dir.display())));
    assert!(places.is_sorted(), "{places:?}");
    html
}

#[test]
fn an_ablation_has_eight_rows_and_goes_on_where_it_was() {
    let scene = Scene::new();
    // Planned only, then one seed, then another: rows are marked as long as they are missing runs.
    let (said, dir) = scene.study("ablation", &["--seeds", "1", "--plan-only"]);
    assert!(said.contains("8 runs planned"), "{said}");
    ssdkd(&["sweep", "run", dir.to_str().unwrap(), "--at-most", "3"]).expect(0);
    let partial = ssdkd(&["study", "show", dir.to_str().unwrap()]).expect(0).stdout;
    assert!(partial.contains("3 of 8 runs done") && partial.contains("–* |"), "{partial}");
    let (said, _) = scene.study("ablation", &["--seeds", "1"]);
    // While it runs, and at its end.
    assert!(said.contains("3 of 8 runs done") && said.contains("8 of 8 runs done"), "{said}");
    let whole = page(&dir);
    assert!(whole.contains("8 of 8 runs done.") && !whole.contains('*'), "{whole}");
    let marks = ["diversity factor", "difficulty factor", "priority sampling"].map(|name| column(&whole, name));
    let rows: std::collections::BTreeSet<_> = (0..8).map(|i| marks.each_ref().map(|column| column[i].clone())).collect();
    assert_eq!((rows.len(), column(&whole, "against all on")[0].as_str()), (8, "+0.00"));
    // Each row's figure is that of its run.
    let csv = std::fs::read_to_string(dir.join("results.csv")).unwrap();
    let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let at = |name: &str| head.iter().position(|h| *h == name).unwrap();
    let uniform = csv
        .lines()
        .skip(1)
        .map(|line| line.split(',').collect::<Vec<_>>())
        .find(|row| row[at("replay.draw")] == "uniform" && row[at("phi.diversity")] == "off" && row[at("phi.difficulty")] == "off")
        .unwrap();
    let score = format!("{:.2}", 100.0 * uniform[at("report.student.top1")].parse::<f64>().unwrap());
    assert_eq!(column(&whole, "top-1, %").last(), Some(&score));
    for name in ["study.svg", "results.parquet", "report.html"] {
        assert!(dir.join(name).metadata().unwrap().len() > 500, "{name}");
    }
    // Where there are no fonts there is none of it.
    let svg = std::fs::read_to_string(dir.join("study.svg")).unwrap();
    assert_eq!(std::fs::read(dir.join("study.png")).ok(), ssdkd::report::to_png(&svg));
    // The page keeps the table's order, and shows the best six in it.
    let html = report(&dir, &["diversity factor", "difficulty factor", "priority sampling"]);
    let names = ["diversity + difficulty + priority", "diversity + difficulty", "diversity + priority", "priority", "none"];
    let places = names.map(|name| html.find(&format!("<tr><td>{name}</td>")).unwrap());
    assert!(places.is_sorted() && html.contains("the best 6 of 8"), "{places:?}");
    assert_eq!(html.matches("<img alt=\"synthetic images").count(), 6);
    // With a second seed, means of two; it comes after all of the first.
    scene.study("ablation", &["--seeds", "2"]);
    let plan = ssdkd::sweep::Plan::read(&ssdkd::sweep::SweepFolder::new(&dir).unwrap()).unwrap();
    assert_eq!(plan.trials.iter().map(|trial| trial.repeat).collect::<Vec<_>>(), [[1; 8], [2; 8]].concat());
    assert!(page(&dir).contains("16 of 16 runs done.") && column(&page(&dir), "top-1, %").iter().all(|cell| cell.contains('±')));
}

#[test]
fn sizes_methods_and_a_published_row() {
    let scene = Scene::new();
    let (_, dir) = scene.study("scale", &["--seeds", "1", "--plan-only"]);
    let plan = std::fs::read_to_string(dir.join("plan.toml")).unwrap();
    for capacity in [60_000, 12_000, 6_000, 3_000, 600] {
        assert!(plan.contains(&format!("\"replay.capacity\" = {capacity},")), "{capacity}: {plan}");
    }
    // Other sizes are another study in the same folder.
    scene.study("scale", &["--seeds", "1", "--sizes", "20", "0.5"]);
    let names = |name: &str| column(&page(&dir), name);
    assert_eq!(names("synthetic data, % of the original"), ["20", "0.5"]);
    let minutes = names("minutes");
    assert!(minutes.iter().all(|cell| cell.parse::<f64>().is_ok_and(|minutes| (0.0..5.0).contains(&minutes))), "{minutes:?}");
    // What was never full says how much was made.
    let made = names("images");
    assert!(made[0].starts_with("12000 (") && made[0].ends_with(" made)"), "{made:?}");
    // The folder shows the study that was planned in it last.
    let mut words: Vec<String> = ["study", "ablation", "--plan-only", "--dir", dir.to_str().unwrap()].map(str::to_owned).to_vec();
    words.extend(scene.base.iter().cloned());
    ssdkd(&words).expect(0);
    assert!(ssdkd(&["study", "show", dir.to_str().unwrap()]).expect(0).stdout.contains("| diversity factor |"));
    let variants = ["--variant", "Fast-1: method=fast_meta inversion.steps=1", "--variant", "method=ssd_kd student.lr=0.2"];
    let (_, dir) = scene.study("compare", &[&["--seeds", "1"][..], &variants].concat());
    let names = column(&page(&dir), "");
    assert!(names.contains(&"Fast-1".to_owned()) && names.contains(&"ssd_kd student.lr=0.2".to_owned()), "{names:?}");
    let csv = std::fs::read_to_string(dir.join("results.csv")).unwrap();
    assert!(csv.lines().next().unwrap().contains(",variant,") && csv.contains(",Fast-1,"), "{csv}");
    // Two methods side by side: curves, time, histograms, pictures.
    let html = report(&dir, &["", "top-1, %", "minutes"]);
    for name in ["Fast-1", "ssd_kd student.lr=0.2"] {
        for part in [format!(">\n{name}\n<"), format!("<span>{name}</span><div class=\"stack\"><i"), format!("<td>{name}</td>")] {
            assert!(html.contains(&part), "{part}");
        }
        for part in ["categories in", "difficulty of"] {
            assert!(html.contains(&format!("{name}: {part} the buffer")), "{name}: {part}");
        }
        assert!(html.contains(&format!("<img alt=\"synthetic images, {name}, round 1\"")), "{name}");
    }
    assert_eq!(html.matches("<li>ankle boot</li>").count(), 2);
    // The same that `ssdkd report` makes of the folder.
    let again = scene.folder.path().join("again.html");
    ssdkd(&["report", dir.to_str().unwrap(), "--out", again.to_str().unwrap()]).expect(0);
    assert!(std::fs::read_to_string(again).unwrap() == html);
    let (_, dir) = scene.study("reproduce", &["--seeds", "1"]);
    assert_eq!(
        (column(&page(&dir), "published"), column(&page(&dir), "pair")),
        (vec!["90.99 (the demo)".to_owned()], vec!["wrn16_2 → wrn16_1".to_owned()])
    );
    // Two rounds are not the demo.
    let said = page(&dir);
    assert!(said.contains("**Not the settings of the figure**") && said.contains("`train.rounds` "), "{said}");
    let pairs = ["--pair", "teacher.model=wrn16_2 student.model=wrn16_1", "--pair", "teacher.model=wrn16_2 student.model=wrn16_2"];
    let (said, _) = scene.study("reproduce", &[&["--seeds", "1", "--plan-only"][..], &pairs].concat());
    assert!(said.contains("2 runs planned"), "{said}");
    ssdkd(&["study", "show", scene.folder.path().to_str().unwrap()]).expect(2).says(&["holds no plan.toml"]);
}

/// Methods below each other and pairs side by side; every cell is the mean of its own runs.
#[test]
fn methods_by_pairs() {
    let scene = Scene::new();
    let wide = scene.folder.path().join("wide.toml");
    std::fs::write(&wide, "[student]\nmodel = \"wrn16_2\"\nlr = 0.05\n").unwrap();
    let wide = format!("wider: {}", wide.display());
    let rows = ["--variant", "method=ssd_kd", "--variant", "Fast-1: method=fast_meta inversion.steps=1"];
    let pairs = ["--pair", "teacher.model=wrn16_2 student.model=wrn16_1", "--pair", &wide];
    let (_, dir) = scene.study("compare", &[&["--seeds", "1"][..], &rows, &pairs].concat());
    let page = page(&dir);
    let (scores, minutes) = page.split_once("Minutes of a run:").unwrap();
    assert_eq!(
        (column(scores, "top-1, %"), column(minutes, "wider").len()),
        (vec!["teacher".to_owned(), "ssd_kd".into(), "Fast-1".into()], 2)
    );
    let csv = std::fs::read_to_string(dir.join("results.csv")).unwrap();
    let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let at = |row: &[&str], name: &str| row[head.iter().position(|h| *h == name).unwrap()].to_owned();
    for line in csv.lines().skip(1) {
        let row: Vec<&str> = line.split(',').collect();
        let (variant, pair, model) = (at(&row, "variant"), at(&row, "pair"), at(&row, "student.model"));
        assert_eq!(pair == "wider", model == "wrn16_2");
        let cell = &column(scores, &pair)[1 + usize::from(variant == "Fast-1")];
        assert_eq!(*cell, format!("{:.2}", 100.0 * at(&row, "report.student.top1").parse::<f64>().unwrap()), "{variant}, {pair}");
    }
    // Every method by itself, and a method's file beside a pair: images are made as published, whatever the base and the pair say.
    let (said, dir) = scene.study("compare", &["--seeds", "1", "--plan-only"]);
    let planned = |dir: &Path| std::fs::read_to_string(dir.join("plan.toml")).unwrap();
    let deepinv = planned(&dir).lines().find(|line| line.contains("method = \"deepinv\"")).unwrap().to_owned();
    assert!(said.contains("11 runs planned") && deepinv.contains("\"inversion.steps\" = 1000"), "{said}{deepinv}");
    let pair = format!(
        "{} teacher.model=wrn16_2 dataset=fashion_mnist replay.capacity=5000",
        root().join("configs/cifar10/wrn40_2-wrn16_1.toml").display()
    );
    let file = format!("CMI: {}", root().join("configs/methods/cmi.toml").display());
    let (_, dir) =
        scene.study("compare", &["--seeds", "1", "--plan-only", "--variant", &file, "--variant", "method=ssd_kd", "--pair", &pair]);
    let weights: Vec<bool> = planned(&dir)
        .lines()
        .filter(|line| line.starts_with("set = "))
        .map(|line| line.contains("\"inversion.adversarial_weight\" = 0.5"))
        .collect();
    assert_eq!(weights, [true, false], "{}", planned(&dir));
    // Pairs of another task than the base: their score counts.
    let (_, dir) = scene.study("compare", &["--seeds", "1", "--plan-only", "--variant", "method=ssd_kd", "--pair", "dataset=none"]);
    assert!(planned(&dir).contains("metric = \"student.agreement\""), "{}", planned(&dir));
}

#[test]
fn what_no_study_can_run_is_refused_and_what_failed_is_named() {
    let scene = Scene::new();
    let refused = |kind: &str, more: &[&str]| {
        let dir = scene.folder.path().join("refused").display().to_string();
        let mut words: Vec<String> = ["study", kind, "--dir", &dir, "--plan-only"].map(str::to_owned).to_vec();
        words.extend(scene.base.iter().cloned().chain(more.iter().map(|word| (*word).to_owned())));
        let out = ssdkd(&words).expect(2);
        assert!(!Path::new(&dir).join("plan.toml").exists());
        out.stderr
    };
    for (kind, more, said) in [
        ("scale", &["--sizes", "0"][..], "--sizes: 0 per cent"),
        ("scale", &["--set", "method=fast_meta"], "scale is a study of ssd_kd"),
        ("compare", &["--variant", "fast"], "--variant: `fast` is neither KEY=VALUE nor a file"),
        ("compare", &["--pair", "teacher.model=wrn16_2", "--pair", "dataset=scenes13"], "--pair: pairs that are scored differently"),
        (
            "compare",
            &[
                "--pair",
                "teacher.model=wrn16_2 student.model=wrn16_1",
                "--pair",
                "teacher.model=wrn16_2 student.model=wrn16_1 student.lr=0.2",
            ],
            "--pair: two are called `wrn16_2 → wrn16_1`",
        ),
        // A network that does not label what the data set labels: before any run.
        ("compare", &["--variant", "student.model=deeplabv3_mobilenet"], "student.model: deeplabv3_mobilenet labels pixels"),
    ] {
        let stderr = refused(kind, more);
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    // A run that breaks down is a line below the table; the others count.
    let dir = scene.folder.path().join("broken").display().to_string();
    let mut words = vec!["study".to_owned(), "compare".into(), "--dir".into(), dir.clone(), "--seeds".into(), "1".into()];
    words.extend(scene.base.iter().cloned());
    words.extend(
        ["--set", "train.max_nonfinite_steps=1", "--variant", "sound: student.lr=0.1", "--variant", "broken: student.lr=1e30"]
            .map(str::to_owned),
    );
    ssdkd(&words).expect(1).says(&["1 runs are not done", "sweep retry"]);
    let page = page(Path::new(&dir));
    assert!(page.contains("1 of 2 runs done.") && page.contains("| broken | –* |") && page.contains("student.lr=1e30"), "{page}");
    assert!(page.contains("not finite"), "{page}");
}

/// A study of ranks hands a stop on, whether it comes from outside or from the run, and goes on with the same command.
#[test]
fn a_study_of_ranks_stops_behind_a_checkpoint() {
    let scene = Scene::new();
    let dir = scene.folder.path().join("ranks");
    let command = |rounds: u64| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ssdkd"));
        command.args(["study", "ranks", "--ranks", "1", "--seeds", "1", "--dir"]).arg(&dir).args(&scene.base);
        command.args(["--set", &format!("train.rounds={rounds}")]).stdout(std::process::Stdio::null());
        command
    };
    let mut running = command(100_000).spawn().unwrap();
    let began = std::time::Instant::now();
    let run = dir.join("strong-1-seed-0");
    let steps = || ssdkd::run_folder::Status::read(&run).is_ok_and(|status| status.state == ssdkd::run_folder::State::Running);
    while !steps() {
        assert!(began.elapsed().as_secs() < 120, "the first run does not begin");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // SAFETY: a signal to a process that this test has started and not waited for.
    assert_eq!(unsafe { libc::kill(running.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(running.wait().unwrap().code(), Some(75));
    assert_eq!(ssdkd(&["inspect", "--status", run.to_str().unwrap()]).expect(0).stdout, "stopped\n");
    // The run's own stop, and the way on.
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(command(2).env("SSDKD_FAULT_FOR_TESTS", "usr1 0 distillation 1").status().unwrap().code(), Some(75));
    assert!(!dir.join("weak-1-seed-0").exists());
    assert_eq!(command(2).status().unwrap().code(), Some(0));
    assert!(page(&dir).contains("2 of 2 runs done."));
}

#[test]
fn ranks_share_the_same_work_or_bring_their_own() {
    if !has_mpirun() {
        return;
    }
    let scene = Scene::new();
    let (_, dir) = scene.study("ranks", &["--ranks", "1", "2", "--seeds", "1"]);
    let table = page(&dir);
    assert_eq!(column(&table, "scaling"), ["strong", "strong", "weak", "weak"]);
    assert_eq!(
        (column(&table, "M"), column(&table, "batch")),
        (["2", "2", "1", "2"].map(String::from).to_vec(), ["32", "32", "16", "32"].map(String::from).to_vec())
    );
    let csv = std::fs::read_to_string(dir.join("results.csv")).unwrap();
    let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let numbers = |name: &str| {
        let at = head.iter().position(|h| *h == name).unwrap();
        csv.lines().skip(1).map(|line| line.split(',').nth(at).unwrap().parse::<f64>().unwrap()).collect::<Vec<_>>()
    };
    // By the definitions: time of one rank over R times that of R, and over that of R with R times the work.
    let s = numbers("seconds");
    let wanted = [1.0, s[0] / (2.0 * s[1]), 1.0, s[2] / s[3]].map(|e| format!("{e:.3}"));
    assert_eq!(column(&table, "efficiency"), wanted);
    let lr = numbers("student.lr");
    assert_eq!(lr, [lr[0], lr[0], lr[0] / 2.0, lr[0]], "in proportion to the batch");
    assert_eq!(numbers("bytes_sent").iter().map(|bytes| *bytes > 0.0).collect::<Vec<_>>(), [false, true, false, true]);
    // The same run, cut into more parts.
    let sums = |name: &str| ssdkd(&["inspect", "--checksum", dir.join(name).to_str().unwrap()]).expect(0).stdout;
    assert_eq!(sums("strong-1-seed-0"), sums("strong-2-seed-0"));
    // All done: nothing is run again.
    let made = || dir.join("weak-2-seed-0/report.json").metadata().unwrap().modified().unwrap();
    let before = made();
    scene.study("ranks", &["--ranks", "1", "2", "--seeds", "1"]);
    assert_eq!(made(), before);
    // A second seed: means of two, a line for every run, and a page about all of them.
    scene.study("ranks", &["--ranks", "1", "2", "--seeds", "2"]);
    assert!(column(&page(&dir), "seconds").iter().all(|cell| cell.contains('±')), "{}", page(&dir));
    let csv = std::fs::read_to_string(dir.join("results.csv")).unwrap();
    assert!(csv.lines().count() == 9 && csv.contains("weak,2,2,32,"), "{csv}");
    let folder = dir.to_str().unwrap();
    assert_eq!(ssdkd(&["study", "show", folder]).expect(0).stdout, page(&dir));
    ssdkd(&["report", folder]).expect(0);
    assert!(report(&dir, &["scaling", "ranks", "M"]).contains("weak-2-seed-1"));
}

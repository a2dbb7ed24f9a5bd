//! Studies on runs of about a second.

use crate::launch::{has_mpirun, small_fashion_mnist, ssdkd, tiny};
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

#[test]
fn an_ablation_has_eight_rows_and_goes_on_where_it_was() {
    let scene = Scene::new();
    // Planned only, then one seed, then another: rows are marked as long as they are missing runs.
    let (said, dir) = scene.study("ablation", &["--seeds", "1", "--plan-only"]);
    assert!(said.contains("8 runs planned"), "{said}");
    ssdkd(&["sweep", "run", dir.to_str().unwrap(), "--at-most", "3"]).expect(0);
    let partial = ssdkd(&["study", "show", dir.to_str().unwrap()]).expect(0).stdout;
    assert!(partial.contains("3 of 8 runs done") && partial.contains("–* |"), "{partial}");
    scene.study("ablation", &["--seeds", "1"]);
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
    // With a second seed, means of two.
    scene.study("ablation", &["--seeds", "2"]);
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
    let variants = ["--variant", "method=fast_meta inversion.steps=1", "--variant", "method=ssd_kd"];
    let (_, dir) = scene.study("compare", &[&["--seeds", "1"][..], &variants].concat());
    let names = column(&page(&dir), "");
    assert!(names.contains(&"ssd_kd".to_owned()) && names.contains(&"fast_meta inversion.steps=1".to_owned()), "{names:?}");
    let (_, dir) = scene.study("reproduce", &["--seeds", "1"]);
    assert_eq!(
        (column(&page(&dir), "published"), column(&page(&dir), "pair")),
        (vec!["not published".to_owned()], vec!["wrn16_2 → wrn16_1".to_owned()])
    );
    ssdkd(&["study", "show", scene.folder.path().to_str().unwrap()]).expect(2).says(&["holds no plan.toml"]);
}

#[test]
fn ranks_share_the_same_work_or_bring_their_own() {
    if !has_mpirun() {
        return;
    }
    let scene = Scene::new();
    let (_, dir) = scene.study("ranks", &["--ranks", "1", "2"]);
    let table = page(&dir);
    assert_eq!(column(&table, "scaling"), ["strong", "strong", "weak", "weak"]);
    assert_eq!(
        (column(&table, "M"), column(&table, "batch")),
        (["2", "2", "1", "2"].map(String::from).to_vec(), ["64", "64", "32", "64"].map(String::from).to_vec())
    );
    assert_eq!(column(&table, "efficiency")[0], "1.000");
    // The same run, cut into more parts.
    let sums = |name: &str| ssdkd(&["inspect", "--checksum", dir.join(name).to_str().unwrap()]).expect(0).stdout;
    assert_eq!(sums("strong-1"), sums("strong-2"));
    // All done: nothing is run again.
    let made = || dir.join("weak-2/report.json").metadata().unwrap().modified().unwrap();
    let before = made();
    scene.study("ranks", &["--ranks", "1", "2"]);
    assert_eq!(made(), before);
}

//! The real finder over real files: what a scan says of those that are known.
#![allow(
    clippy::disallowed_methods,
    reason = "these files stand for the agents' and are not the program's own"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use super::*;

struct Scene {
    dir: tempfile::TempDir,
    finder: RootsFinder,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let root = Root { harness: "claude-code", path: dir.path().join("projects") };
        fs::create_dir_all(root.path.join("-home-dev-x")).unwrap();
        let databases = Arc::new(Databases::new(dir.path().join("copies"), 0, []));
        let finder = RootsFinder::new(databases, crate::harness::all(), vec![root], None);
        Scene { dir, finder }
    }

    fn path(&self, number: u32) -> Arc<Path> {
        let id = format!("{number:08x}-0000-4000-8000-000000000001");
        self.dir.path().join(format!("projects/-home-dev-x/{id}.jsonl")).into()
    }

    fn write(&self, number: u32) -> Arc<Path> {
        let path = self.path(number);
        fs::write(&path, "{\"cwd\":\"/home/dev/x\",\"type\":\"user\"}\n").unwrap();
        path
    }

    /// One file of which all is captured.
    fn with_one() -> (Scene, Arc<Path>, Known) {
        let scene = Scene::new();
        let path = scene.write(1);
        let stat = scene.finder.files.stat(&path).unwrap();
        let known = Known::from([(path.clone(), Some((stat, false)))]);
        (scene, path, known)
    }

    /// Which of the known ones a scan meets, and whether there is something to see.
    fn met(&self, known: &Known) -> BTreeMap<Arc<Path>, bool> {
        let findings = self.finder.scan(known);
        assert!(findings.new.is_empty() && !findings.unclear, "{findings:?}");
        assert!(findings.known.iter().all(|met| !met.archived));
        findings.known.into_iter().map(|met| (met.path, met.changed)).collect()
    }
}

#[test]
fn t50_a_file_that_is_as_it_was_is_met_and_not_looked_at() {
    let (scene, path, known) = Scene::with_one();
    assert_eq!(scene.met(&known), BTreeMap::from([(path, false)]));
}

#[test]
fn t1_t2_t3_a_file_that_is_not_as_it_was_is_looked_at() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("longer", |path| {
            File::options().append(true).open(path).unwrap().write_all(b"{}\n").unwrap()
        }),
        ("cut to nothing", |path| File::create(path).map(drop).unwrap()),
        ("written over with as many bytes, under the same time", |path| {
            let time = fs::metadata(path).unwrap().modified().unwrap();
            let text = fs::read_to_string(path).unwrap().replace("user", "uses");
            let mut file = File::options().write(true).open(path).unwrap();
            // The clock of a file system may tick slowly: the kernel's time has to be another one.
            let changed =
                || (file.metadata().unwrap().ctime(), file.metadata().unwrap().ctime_nsec());
            let (before, deadline) = (changed(), Instant::now() + Duration::from_secs(20));
            while changed() == before {
                assert!(Instant::now() < deadline, "the clock of the file system stands still");
                file.set_modified(time).unwrap();
            }
            file.write_all(text.as_bytes()).unwrap();
            file.set_modified(time).unwrap();
        }),
        ("replaced by another of the same text and time", |path| {
            let time = fs::metadata(path).unwrap().modified().unwrap();
            let next = path.with_extension("next");
            fs::copy(path, &next).unwrap();
            File::options().write(true).open(&next).unwrap().set_modified(time).unwrap();
            fs::rename(next, path).unwrap();
        }),
    ];
    for (name, change) in changes {
        let (scene, path, known) = Scene::with_one();
        change(&path);
        assert_eq!(scene.met(&known), BTreeMap::from([(path, true)]), "{name}");
    }
}

#[test]
fn what_is_not_said_to_be_captured_is_looked_at() {
    let scene = Scene::new();
    let path = scene.write(1);
    assert_eq!(scene.met(&Known::from([(path.clone(), None)])), BTreeMap::from([(path, true)]));
}

#[test]
fn a_file_that_is_not_set_aside_any_more_is_looked_at() {
    let (scene, path, mut known) = Scene::with_one();
    known.values_mut().flatten().for_each(|(_, archived)| *archived = true);
    assert_eq!(scene.met(&known), BTreeMap::from([(path, true)]));
}

#[test]
fn a_file_that_is_gone_is_not_met_and_one_that_is_new_is_described() {
    let (scene, path, known) = Scene::with_one();
    fs::remove_file(&path).unwrap();
    assert_eq!(scene.met(&known), BTreeMap::new());
    let new = scene.write(2);
    let findings = scene.finder.scan(&known);
    let [found] = findings.new.as_slice() else { panic!("{findings:?}") };
    assert_eq!(found.candidate.path, *new);
    assert_eq!(found.facts.cwd.as_deref(), Some("/home/dev/x"));
}

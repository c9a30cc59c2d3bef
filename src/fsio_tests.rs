//! Tests of `fsio.rs`: what is left after a kill at any point, who may read it, who holds a lock.

use std::process::{Command, Stdio};

use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn write_atomic_replaces_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    write_atomic(&file, b"one").unwrap();
    write_atomic(&file, b"two").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["a"]);
    let missing = dir.path().join("none/a");
    let e = write_atomic(&missing, b"x").unwrap_err();
    assert!(e.message().contains("none"), "{e}");
}

#[test]
fn a_failed_write_keeps_the_old_content() {
    let dir = tempfile::tempdir().unwrap();
    let occupied = dir.path().join("folder");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("x"), "x").unwrap();
    write_atomic(&occupied, b"file over a folder").unwrap_err();
    assert_eq!(names(dir.path()), ["folder"]);
}

#[cfg(unix)]
#[test]
fn everything_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("home/finch");
    create_private_dir(&root).unwrap();
    assert_eq!((mode(&root), mode(root.parent().unwrap())), (0o700, 0o700));
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    create_private_dir(&open).unwrap();
    assert_eq!(mode(&open), 0o700, "an existing folder of finch's is closed");

    let file = root.join("f");
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    write_atomic(&file, b"y").unwrap();
    assert_eq!(mode(&file), 0o600);
    let db = root.join("db");
    fs::write(&db, "kept").unwrap();
    create_private_file(&db).unwrap();
    assert_eq!((mode(&db), fs::read(&db).unwrap()), (0o600, b"kept".to_vec()));

    // A parent that is not finch's keeps its permissions.
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    let out = shared.join("out");
    write_dir_atomic(&out, |tmp| {
        fs::create_dir(tmp.join("sub")).unwrap();
        fs::write(tmp.join("sub/file"), "x").unwrap();
        fs::set_permissions(tmp.join("sub/file"), fs::Permissions::from_mode(0o666)).unwrap();
        Ok(())
    })
    .unwrap();
    let modes = (mode(&shared), mode(&out), mode(&out.join("sub")), mode(&out.join("sub/file")));
    assert_eq!(modes, (0o755, 0o700, 0o700, 0o600));
}

#[cfg(unix)]
#[test]
fn a_link_stays_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    write_atomic(&link, b"new").unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_folder_is_complete_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("new/dst");
    let e = write_dir_atomic(&dst, |tmp| {
        fs::write(tmp.join("half"), "x").unwrap();
        assert!(!dst.exists(), "not visible while it is made");
        Err(Error::failure("stopped"))
    });
    assert_eq!(e.unwrap_err().message(), "stopped");
    assert!(!dst.exists());
    assert!(names(dst.parent().unwrap()).is_empty(), "nothing is left");

    write_dir_atomic(&dst, |tmp| Ok(fs::write(tmp.join("a"), "1")?)).unwrap();
    assert_eq!(names(&dst), ["a"]);
    let e = write_dir_atomic(&dst, |_| panic!("must not be asked")).unwrap_err();
    assert!(e.message().contains("already exists") && e.hint_text().is_some(), "{e}");

    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    write_dir_atomic(&empty, |tmp| Ok(fs::write(tmp.join("b"), "2")?)).unwrap();
    assert_eq!(names(&empty), ["b"]);

    // Somebody else finishes first: the loser's folder does not mix with the winner's.
    let race = dir.path().join("race");
    let e = write_dir_atomic(&race, |tmp| {
        fs::write(tmp.join("mine"), "x").unwrap();
        fs::create_dir(&race).unwrap();
        Ok(fs::write(race.join("theirs"), "x")?)
    });
    assert!(e.unwrap_err().message().contains("already exists"));
    assert_eq!(names(&race), ["theirs"]);
}

#[test]
fn a_folder_goes_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a");
    fs::create_dir_all(a.join("b")).unwrap();
    fs::write(a.join("b/c"), "x").unwrap();
    remove_dir_atomic(&a).unwrap();
    assert!(names(dir.path()).is_empty());
    assert!(remove_dir_atomic(&a).is_err());
}

#[test]
fn sweep_takes_the_dead_and_spares_the_living() {
    let dir = tempfile::tempdir().unwrap();
    let p = |name: &str| dir.path().join(name);
    let alive = Temporary::reserve(dir.path()).unwrap();
    fs::create_dir(&alive.path).unwrap();
    fs::create_dir(p(".finch-tmp-1-a-0")).unwrap();
    fs::write(p(".finch-tmp-1-a-0/half"), "x").unwrap();
    fs::write(p(".finch-tmp-1-a-0.lock"), "").unwrap();
    fs::write(p(".finch-tmp-1-a-1"), "half a file").unwrap();
    fs::write(p(".finch-tmp-1-a-2.lock"), "").unwrap();
    fs::write(p("kept"), "x").unwrap();
    assert_eq!(sweep_temporaries(dir.path()).unwrap(), 2);
    assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
    assert!(alive.path.is_dir() && alive.lock_path.is_file() && p("kept").exists());
    drop(alive);
    assert_eq!(names(dir.path()), ["kept"]);
    assert_eq!(sweep_temporaries(&p("missing")).unwrap(), 0);
}

/// Not a test of its own: the process that the kill and lock tests start and kill.
#[test]
fn child() {
    let Ok(job) = std::env::var("FINCH_FSIO_TEST_CHILD") else { return };
    let (what, dir) = job.split_once(' ').unwrap();
    let dir = PathBuf::from(dir);
    match what {
        "hold" => {
            let _lock = Lock::try_acquire(&dir.join("t.lock"), "training").unwrap();
            fs::write(dir.join("ready"), "").unwrap();
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        "write" => {
            for i in 0.. {
                let dst = dir.join(format!("folder-{i}"));
                write_dir_atomic(&dst, |tmp| {
                    for file in ["a", "b", "c"] {
                        fs::write(tmp.join(file), vec![b'x'; 20_000])?;
                    }
                    Ok(())
                })
                .unwrap();
                write_atomic(&dir.join("file"), &vec![b'0' + (i % 10) as u8; 20_000]).unwrap();
                remove_dir_atomic(&dir.join(format!("folder-{}", i / 2))).ok();
            }
        }
        other => panic!("{other}"),
    }
}

fn spawn_child(what: &str, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fsio::tests::child", "--nocapture"])
        .env("FINCH_FSIO_TEST_CHILD", format!("{what} {}", dir.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_kill_at_any_moment_leaves_whole_things_only() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..8u64 {
        let mut child = spawn_child("write", dir.path());
        let start = std::time::Instant::now();
        while !dir.path().join("file").exists() && start.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        std::thread::sleep(std::time::Duration::from_millis(7 * round + 3));
        child.kill().unwrap();
        child.wait().unwrap();
        let file = fs::read(dir.path().join("file")).unwrap();
        assert!(file.len() == 20_000 && file.iter().all(|b| *b == file[0]), "round {round}");
        sweep_temporaries(dir.path()).unwrap();
        for name in names(dir.path()) {
            assert!(!name.starts_with(TEMP_PREFIX), "round {round}: {name} left");
            if name.starts_with("folder-") {
                let folder = dir.path().join(&name);
                assert_eq!(names(&folder), ["a", "b", "c"], "round {round}: {name}");
                assert!(names(&folder).iter().all(|f| fs::read(folder.join(f)).unwrap().len() == 20_000));
                fs::remove_dir_all(&folder).unwrap();
            }
        }
        fs::remove_file(dir.path().join("file")).unwrap();
    }
}

#[test]
fn a_lock_holds_across_processes_and_dies_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.lock");
    assert_eq!(Lock::holder(&path).unwrap(), None, "and it makes no file");
    assert!(!path.exists());
    let mut child = spawn_child("hold", dir.path());
    let start = std::time::Instant::now();
    while !dir.path().join("ready").exists() {
        assert!(start.elapsed().as_secs() < 20, "the child did not start");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let e = Lock::try_acquire(&path, "training").unwrap_err();
    assert_eq!(e.kind().exit_code(), 1);
    #[cfg(unix)]
    assert_eq!(e.message(), format!("training is already running in process {}", child.id()));
    #[cfg(unix)]
    assert_eq!(Lock::holder(&path).unwrap().unwrap().pid, Some(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(Lock::holder(&path).unwrap(), None);

    let lock = Lock::try_acquire(&path, "training").unwrap();
    let Attempt::Held(holder) = Lock::attempt(&path, "training").unwrap() else { panic!("two handles, one lock") };
    #[cfg(unix)]
    assert_eq!(holder, Holder { pid: Some(std::process::id()), purpose: Some("training".into()) });
    drop((lock, holder));
    Lock::try_acquire(&path, "again").unwrap();
}

#[test]
fn a_waiting_lock_gets_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.lock");
    let first = Lock::try_acquire(&path, "first").unwrap();
    let (done, waiter) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(Lock::wait(&path, "second").map(drop)).unwrap());
        let early = waiter.recv_timeout(std::time::Duration::from_millis(50));
        assert!(early.is_err(), "the lock was given away twice");
        drop(first);
        waiter.recv_timeout(std::time::Duration::from_secs(20)).unwrap().unwrap();
    });
}

#[test]
fn reads_are_bounded_and_of_regular_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "12345").unwrap();
    assert_eq!(read_limited(&file, 5).unwrap(), b"12345");
    let e = read_limited(&file, 4).unwrap_err();
    assert!(e.message().contains("5 bytes") && e.message().contains("at most 4"), "{e}");
    assert!(read_limited(dir.path(), 5).unwrap_err().message().contains("not a regular file"));
    assert!(read_limited(&dir.path().join("none"), 5).unwrap_err().message().contains("none"));
    #[cfg(target_os = "linux")]
    {
        assert!(read_limited(Path::new("/dev/zero"), 5).is_err());
        assert!(read_limited(Path::new("/proc/self/maps"), 5).unwrap_err().message().contains("at most 5"));
    }
}

#[test]
fn text_is_utf8_and_says_where_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "\u{feff}a\nü").unwrap();
    assert_eq!(read_text_limited(&file, 100).unwrap(), "a\nü");
    fs::write(&file, b"a\nb\n\xff").unwrap();
    assert!(read_text_limited(&file, 100).unwrap_err().message().contains("line 3"));
}

//! Reads the files of an import.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::fault::Fault;
use crate::text;

/// The files of an import, in the order in which they are imported.
pub const NAMES: [&str; 3] = [ACCOUNTS, TRAINS, CLIENT_KEYS];
/// Upstream credentials.
pub const ACCOUNTS: &str = "accounts.json";
/// Trains with the accounts that they lend.
pub const TRAINS: &str = "trains.json";
/// Keys that clients of trains have already.
pub const CLIENT_KEYS: &str = "client-keys.json";

/// The largest file that is read, bytes.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most entries of the directory.
const ENTRIES_MAX: usize = 1000;

/// The content of one file. It is wiped when dropped.
pub struct InputFile {
    /// The name, one of [`NAMES`].
    pub name: &'static str,
    /// The content.
    pub bytes: Zeroizing<Vec<u8>>,
}

/// All files of an import.
#[derive(Default)]
pub struct InputFiles {
    /// The files that exist, in the order of [`NAMES`].
    pub files: Vec<InputFile>,
    /// Warnings, as sentences.
    pub warnings: Vec<String>,
}

impl InputFiles {
    /// Reads a directory. Links are followed, because orchestrators mount secrets as links.
    ///
    /// # Errors All errors: no file to import, a JSON file with another name, a file that can't be
    /// read or is too large.
    pub fn read(directory: &Path) -> Result<Self, Vec<Fault>> {
        let names = match json_names(directory) {
            Ok(names) => names,
            Err(fault) => return Err(vec![fault]),
        };
        let mut faults: Vec<Fault> = names
            .iter()
            .filter(|name| !NAMES.contains(&name.as_str()))
            .map(|name| unknown(name))
            .collect();
        let mut sources = Self::default();
        for name in NAMES {
            if !names.iter().any(|there| there == name) {
                continue;
            }
            let path = directory.join(name);
            match read_file(&path) {
                Ok((bytes, mode)) => {
                    sources.warnings.extend(too_open(&path, mode));
                    sources.files.push(InputFile { name, bytes });
                }
                Err(what) => faults.push(Fault::of_file(name, what)),
            }
        }
        if sources.files.is_empty() && faults.is_empty() {
            let what = format!("it holds none of {}", NAMES.join(", "));
            faults.push(Fault::of_file(directory.display().to_string(), what));
        }
        if faults.is_empty() {
            Ok(sources)
        } else {
            Err(faults)
        }
    }
}

/// The names in a directory that end in `.json`.
fn json_names(directory: &Path) -> Result<Vec<String>, Fault> {
    let failed = |what: String| Fault::of_file(directory.display().to_string(), what);
    let entries =
        fs::read_dir(directory).map_err(|error| failed(format!("can't be read: {error}")))?;
    let mut names = Vec::new();
    for (count, entry) in entries.enumerate() {
        if count == ENTRIES_MAX {
            let what = format!(
                "it has more than {ENTRIES_MAX} entries; give the import a directory of its own"
            );
            return Err(failed(what));
        }
        let entry = entry.map_err(|error| failed(format!("can't be read: {error}")))?;
        let path = PathBuf::from(entry.file_name());
        if path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
        {
            names.push(path.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn unknown(name: &str) -> Fault {
    let hint = text::nearest(name, NAMES.into_iter()).map_or_else(
        || format!("an import takes {}", NAMES.join(", ")),
        |nearest| format!("did you mean {nearest}?"),
    );
    Fault::of_file(text::shortened(name), format!("can't be imported; {hint}"))
}

/// The content of a file, and its mode. The buffer gets its full size at once: a growing one would
/// leave copies in memory.
fn read_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), String> {
    let failed = |error: std::io::Error| format!("can't be read: {error}");
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err("is not a file".to_owned());
    }
    let too_large = || format!("is larger than {} MiB", FILE_BYTES_MAX / (1024 * 1024));
    if meta.len() > FILE_BYTES_MAX {
        return Err(too_large());
    }
    let room = usize::try_from(meta.len() + 1).map_err(|_| too_large())?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(too_large());
    }
    Ok((bytes, meta.permissions().mode() & 0o7777))
}

fn too_open(path: &Path, mode: u32) -> Option<String> {
    let path = path.display();
    (mode & 0o077 != 0).then(|| {
        format!("{path} can be read or written by others (mode {mode:04o}); run `chmod 600 {path}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn faults(directory: &Path) -> Vec<String> {
        let faults = InputFiles::read(directory).err().unwrap();
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_come_in_the_order_of_the_import() {
        let directory = directory(&[
            ("trains.json", "t"),
            ("client-keys.json", "k"),
            ("accounts.json", "a"),
            ("README.md", "x"),
        ]);
        let sources = InputFiles::read(directory.path()).unwrap();
        let found: Vec<_> = sources.files.iter().map(|file| file.name).collect();
        assert_eq!(found, NAMES);
        assert_eq!(*sources.files[0].bytes, b"a");
    }

    #[test]
    fn whoever_could_read_along_is_named() {
        let directory = directory(&[("trains.json", "t")]);
        let path = directory.path().join("trains.json");
        for (mode, warned) in [(0o600, 0), (0o640, 1), (0o602, 1)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let sources = InputFiles::read(directory.path()).unwrap();
            assert_eq!(sources.warnings.len(), warned, "{mode:o}");
        }
    }

    #[test]
    fn every_wrong_file_is_named_at_once() {
        let directory = directory(&[("account.json", "{}"), ("other.json", "{}")]);
        fs::create_dir(directory.path().join("trains.json")).unwrap();
        let faults = faults(directory.path());
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].contains("did you mean accounts.json?"),
            "{faults:?}"
        );
        assert!(faults[1].contains("an import takes"), "{faults:?}");
        assert!(faults[2].contains("is not a file"), "{faults:?}");
    }

    #[test]
    fn an_empty_or_absent_directory_is_a_fault() {
        let directory = directory(&[("README.md", "x")]);
        assert!(faults(directory.path())[0].contains("holds none of"));
        let absent = directory.path().join("absent");
        assert!(faults(&absent)[0].contains("can't be read"));
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let directory = directory(&[]);
        let file = File::create(directory.path().join("trains.json")).unwrap();
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(faults(directory.path())[0].contains("larger than 16 MiB"));
    }

    #[test]
    fn links_are_followed() {
        let files = directory(&[("data", "t")]);
        let directory = directory(&[]);
        let link = directory.path().join("trains.json");
        std::os::unix::fs::symlink(files.path().join("data"), link).unwrap();
        let sources = InputFiles::read(directory.path()).unwrap();
        assert_eq!(*sources.files[0].bytes, b"t");
    }
}

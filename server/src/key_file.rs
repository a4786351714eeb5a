//! The file with the master keys. It is replaced as a whole or not at all.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use domain::seal::MasterKeys;

use crate::{
    config::Config,
    secret_file::{
        DataDirError, FILE_MODE, Result, io_at, open_mode, read_private, read_secret, write_whole,
    },
};

/// The name of the file with the master keys.
pub const KEYS_FILE: &str = "master-keys";

/// The file with the master keys.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
    /// Whether the operator chose the path; else the file is in the data directory.
    given: bool,
}

impl KeyFile {
    /// The key file of a configuration; `None` if the configuration contains the keys. The file
    /// need not exist.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        if config.master_keys.is_some() {
            return None;
        }
        if let Some(path) = &config.master_keys_file {
            return Some(Self {
                path: path.clone(),
                given: true,
            });
        }
        config.sqlite_path().map(|_| Self {
            path: config.data_dir.join(KEYS_FILE),
            given: false,
        })
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the keys.
    ///
    /// # Errors The file can't be read or is malformed; or it is in the data directory, and others
    /// have access.
    pub fn read(&self) -> Result<MasterKeys> {
        if !self.given {
            return self.parse(&read_private(&self.path)?);
        }
        // Orchestrators mount secrets with other modes, so this one is not refused.
        if let Some(mode) = open_mode(&self.path)? {
            let path = self.path.display();
            tracing::warn!("The key file {path} can be read by others (mode {mode:04o})");
        }
        self.parse(&read_secret(&self.path)?)
    }

    /// Parses the content of the file.
    ///
    /// # Errors
    /// The content is malformed. The error contains none of it.
    pub(crate) fn parse(&self, text: &str) -> Result<MasterKeys> {
        MasterKeys::parse(text).map_err(|error| DataDirError::Content {
            path: self.path.clone(),
            expected: "master keys",
            wrong: error.to_string(),
        })
    }

    /// Takes a lock against other `keys` commands: a shared one to rewrap keys, or an exclusive
    /// one, if `alone`, to change the file. Servers take neither. Dropping the returned file
    /// releases it.
    ///
    /// # Errors
    /// Another command holds the lock.
    pub fn lock(&self, alone: bool) -> Result<File> {
        let path = self.resolved()?;
        // The directory is locked, because the file is about to be replaced, and no lock file is
        // left.
        let directory = path.parent().unwrap_or(Path::new("/"));
        let lock = File::open(directory).map_err(io_at("opening", directory))?;
        let locked = if alone {
            lock.try_lock()
        } else {
            lock.try_lock_shared()
        };
        match locked {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(DataDirError::KeysBusy(path)),
            Err(TryLockError::Error(error)) => Err(io_at("locking", directory)(error)),
        }
    }

    /// Replaces the keys in the file. Owner and mode stay, because the user who runs this may not
    /// be the one who runs the server.
    ///
    /// # Errors
    /// The file can't be written; then it is unchanged.
    pub fn replace(&self, keys: &MasterKeys) -> Result<()> {
        let path = self.resolved()?;
        let before = fs::metadata(&path).map_err(io_at("reading", &path))?;
        write_whole(&path, &keys.text(), Some(&before))
    }

    /// The path with links followed, so that a link is not replaced by a file.
    fn resolved(&self) -> Result<PathBuf> {
        fs::canonicalize(&self.path).map_err(io_at("finding", &self.path))
    }
}

/// Writes keys to a new file that only its owner may read.
///
/// # Errors
/// The file exists, or can't be written; then no new file is left.
pub fn write_out(path: &Path, keys: &MasterKeys) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(io_at("making", path))?;
    let mut write = || -> io::Result<()> {
        file.write_all(keys.text().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(path);
        io_at("writing", path)(error)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        fs::Permissions,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    use super::*;
    use crate::config;

    fn file_of(path: &Path) -> KeyFile {
        let given: [(OsString, OsString); 1] =
            [("STATIONMASTER_MASTER_KEYS_FILE".into(), path.into())];
        KeyFile::of(&config::load(given, None).unwrap().config).unwrap()
    }

    fn some_keys() -> MasterKeys {
        MasterKeys::parse(&MasterKeys::generate_text("k1")).unwrap()
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_the_link_to_it() {
        let home = tempfile::tempdir().unwrap();
        let (path, link) = (home.path().join("keys.txt"), home.path().join("link"));
        let keys = some_keys();
        write_out(&path, &keys).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        let file = file_of(&link);
        file.replace(&keys.with_fresh_first("k2").unwrap()).unwrap();
        assert!(file.read().unwrap().ids().eq(["k2", "k1"]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_existing_file_is_not_written_over() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("out");
        write_out(&path, &some_keys()).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(write_out(&path, &some_keys()).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_can_t_be_replaced_stays_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys");
        let keys = some_keys();
        write_out(&path, &keys).unwrap();
        // A directory has the name of the new file.
        fs::create_dir(home.path().join("keys.new")).unwrap();
        let file = file_of(&path);
        let refused = file.replace(&keys.with_fresh_first("k2").unwrap());
        assert!(refused.is_err());
        assert_eq!(*file.read().unwrap().text(), *keys.text());
    }

    #[test]
    fn one_at_a_time_changes_it_and_nobody_while_keys_move() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys");
        write_out(&path, &some_keys()).unwrap();
        let file = file_of(&path);
        let alone = file.lock(true).unwrap();
        for other in [true, false] {
            let refused = file.lock(other).unwrap_err();
            assert!(matches!(refused, DataDirError::KeysBusy(_)), "{refused}");
        }
        drop(alone);
        let (_one, _two) = (file.lock(false).unwrap(), file.lock(false).unwrap());
        assert!(file.lock(true).is_err());
    }
}

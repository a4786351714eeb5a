//! What examples of several resources name.

use domain::Timestamp;

use crate::shared::common::Time;

/// A publisher's identifier.
pub(crate) const EXAMPLE_ID: &str = "pub_01h455vb4pex5vsknk084sn02q";
/// A moment: 2026-01-31T12:00:00Z.
pub(crate) const EXAMPLE_AT: Time = Time(Timestamp::from_ms(1_769_860_800_000));

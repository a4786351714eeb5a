//! What examples of several resources name.

use domain::{Timestamp, id::Id};
use uuid::Uuid;

use crate::shared::common::Time;

/// A publisher's identifier.
pub(crate) const EXAMPLE_ID: &str = "pub_01h455vb4pex5vsknk084sn02q";
/// A moment: 2026-01-31T12:00:00Z.
pub(crate) const EXAMPLE_AT: Time = Time::EXAMPLE;
/// Five minutes after [`EXAMPLE_AT`].
pub(crate) const EXAMPLE_SOON: Time = Time(Timestamp::from_ms(1_769_861_100_000));
/// A day before [`EXAMPLE_AT`].
pub(crate) const EXAMPLE_DAY_BEFORE: Time = Time(Timestamp::from_ms(1_769_774_400_000));

/// An identifier of zeros.
pub(crate) fn nil_id<T: Id>() -> T {
    T::from_uuid(Uuid::nil())
}

//! What planes keep in memory besides the database.
//!
//! The store holds it, and notifies it of commits and changes, without knowing its types. So the
//! planes depend on the store, and the store on none of them.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
};

use uuid::Uuid;

use crate::store::effects::Effects;

/// What a plane keeps in memory while the store is open. There is one value of each type.
pub(crate) trait PlaneState: Any + Send + Sync {
    /// Called after a transaction of this process was committed.
    fn committed(&self, _effects: &Effects) {}

    /// Invalidates what is cached of a publisher's credentials, accounts and trains.
    fn forget(&self, _publisher: Uuid) {}

    /// Invalidates what is cached of everybody's credentials, accounts and trains.
    fn forget_all(&self) {}

    /// Called after the clock was set forward or back.
    fn time_was_set(&self) {}
}

/// The states of all planes.
#[derive(Default)]
pub(crate) struct PlaneStates(HashMap<TypeId, Box<dyn PlaneState>>);

impl PlaneStates {
    /// Adds a state.
    pub(crate) fn with<S: PlaneState>(mut self, state: S) -> Self {
        self.0.insert(TypeId::of::<S>(), Box::new(state));
        self
    }

    /// The state of type `S`.
    pub(crate) fn get<S: PlaneState>(&self) -> &S {
        let state = self.0.get(&TypeId::of::<S>());
        let state = state.and_then(|state| (state.as_ref() as &dyn Any).downcast_ref());
        state.expect("whoever opens the store adds the state of every plane")
    }

    /// All states.
    pub(crate) fn all(&self) -> impl Iterator<Item = &dyn PlaneState> {
        self.0.values().map(Box::as_ref)
    }
}

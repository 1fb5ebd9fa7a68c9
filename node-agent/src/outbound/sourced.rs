//! A captured connection whose source is proven: where does it go?

use std::sync::Arc;

use warren_core::route::{self, Route, RouteDenied};
use warren_core::world::{Pod, World};
use warren_mesh::telemetry::{ConnectionRecord, ResponseFlag};

use super::Accepted;
use super::routed::{Routed, Way};
use crate::ended::Ended;

/// A connection of this pod, in this world.
pub(super) struct Sourced {
    pub(super) accepted: Accepted,
    pub(super) world: Arc<World>,
    pub(super) pod: Arc<Pod>,
    pub(super) record: ConnectionRecord,
}

impl Sourced {
    /// Decides the way once, for the connection's whole life.
    pub(super) fn route(self) -> Result<Routed, Ended> {
        let Self { accepted, world, pod, record } = self;
        let way = match route::outbound(&world, &pod, accepted.dst, rand::random()) {
            Route::Deny(RouteDenied::NoReadyEndpoint) => {
                let why = RouteDenied::NoReadyEndpoint.to_string();
                return Err(Ended::failed(accepted.tcp, record, ResponseFlag::NoRoute, why));
            }
            // Addresses and ports that nobody may reach through the mesh: refused, and audited as such.
            Route::Deny(why) => return Err(Ended::denied(accepted.tcp, record, why.to_string())),
            Route::Plain(plain) => Way::Plain(plain),
            Route::Own(own) => Way::Own(own),
            Route::Tunnel(tunnel) => Way::Tunnel(tunnel),
        };
        Ok(Routed { accepted, world, pod, record, way })
    }
}

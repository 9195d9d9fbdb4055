"""Placement groups whose owner is gone: what the training workers of a dead trial still hold.

Ray (2.60) gives back a placement group when its job is over, not when the actor that made it dies:
that of a stopped trial's Ray Train controller would stay until the end of the sweep, and no other
trial could start (issue 54305). Ray Train has a cleaner for it, but that asks the dashboard's State
API, which fails without end and without a word where two Rays run on one machine.
"""

from __future__ import annotations

import contextlib


def remove_orphaned_groups() -> int:
    """Remove the placement groups of this job whose creator, an actor, is dead; how many."""
    import ray
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    removed = 0
    for item in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(item)
        made_by_actor = set(group.creator_actor_id) != {0xFF}  # else by the job itself
        orphaned = made_by_actor and group.creator_actor_dead and not group.is_detached
        gone = group.state == PlacementGroupTableData.PlacementGroupState.REMOVED
        if orphaned and not gone and group.creator_job_id.hex() == job:
            with contextlib.suppress(Exception):  # somebody else was faster
                remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
                removed += 1
    return removed

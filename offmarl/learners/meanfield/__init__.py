"""Learners of many agents on one map: a unit's value depends on what it sees and on what its neighbours did."""

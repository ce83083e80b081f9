"""Variables of the batch-indexed model: one cell for each request i and batch j."""

from __future__ import annotations

from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from cspsched.problem.instance import Instance

Cell = tuple[int, int]


@dataclass(kw_only=True)
class Grid:
    """The model and its variables; `i` is a position in the instance, `j` a batch from 0 on."""

    model: cp_model.CpModel
    instance: Instance
    num_batches: int
    tokens: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """c_ij."""
    carried: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """n_ij: KV entries when batch j starts, on the device or in host memory."""
    generated: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """G_ij: output tokens generated before batch j; one column more than batches."""
    generates: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """g_ij."""
    evicted: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """e_ij: the KV entries are lost at the boundary before batch j."""
    swapped: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """Moved to host memory at the boundary before batch j; empty if no request may be moved."""
    restored: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """Moved back at the boundary before batch j; empty if no request may be moved."""
    hosted: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """In host memory during batch j; empty if no request may be moved."""
    on_device: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """m_ij, or 0 in host memory; empty if no request may be moved."""
    decoding: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """In its decode phase when batch j starts."""
    finished: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """All tokens generated before batch j; one column more than batches."""
    prefills: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """Processed in batch j, in its prefill or refill phase."""
    decodes: dict[Cell, cp_model.IntVar] = field(default_factory=dict)
    """Processed in batch j, in its decode phase."""
    used: list[cp_model.IntVar] = field(default_factory=list)
    """Batch j processes at least one token."""

    @property
    def requests(self) -> range:
        """Positions of the requests."""
        return range(len(self.instance.requests))

    @property
    def batches(self) -> range:
        """Batch indices."""
        return range(self.num_batches)

    def active(self, i: int, j: int) -> cp_model.LinearExpr:
        """1 if request i is processed in batch j."""
        return self.prefills[i, j] + self.decodes[i, j]

    def kv(self, i: int, j: int) -> cp_model.LinearExpr:
        """m_ij = n_ij + c_ij (rule 3)."""
        return self.carried[i, j] + self.tokens[i, j]

    def device_kv(self, i: int, j: int) -> cp_model.LinearExprT:
        """KV entries of request i on the device at the end of batch j."""
        return self.on_device[i, j] if self.on_device else self.kv(i, j)


def build_grid(instance: Instance, num_batches: int) -> Grid:
    """Create all variables with the tightest domains that follow from a cell alone."""
    grid = Grid(model=cp_model.CpModel(), instance=instance, num_batches=num_batches)
    model = grid.model
    preemption = instance.switches.preemption
    budget = instance.limits.max_batch_tokens
    for i, request in enumerate(instance.requests):
        peak, outputs = request.peak_kv_tokens, request.output_tokens
        for j in range(num_batches + 1):
            grid.generated[i, j] = model.new_int_var(0, min(outputs, j), f"generated[{i},{j}]")
            grid.finished[i, j] = model.new_int_var(0, int(j >= outputs), f"finished[{i},{j}]")
        for j in grid.batches:
            later = int(j > 0)
            grid.tokens[i, j] = model.new_int_var(0, min(budget, peak), f"tokens[{i},{j}]")
            grid.carried[i, j] = model.new_int_var(0, peak * later, f"carried[{i},{j}]")
            grid.generates[i, j] = model.new_bool_var(f"generates[{i},{j}]")
            grid.evicted[i, j] = model.new_int_var(0, int(preemption.recomputes) * later, f"evicted[{i},{j}]")
            grid.decoding[i, j] = model.new_int_var(0, later, f"decoding[{i},{j}]")
            grid.prefills[i, j] = model.new_bool_var(f"prefills[{i},{j}]")
            grid.decodes[i, j] = model.new_int_var(0, later, f"decodes[{i},{j}]")
            if preemption.swaps:
                for name in ("swapped", "restored", "hosted"):
                    getattr(grid, name)[i, j] = model.new_int_var(0, later, f"{name}[{i},{j}]")
                grid.on_device[i, j] = model.new_int_var(0, peak, f"on_device[{i},{j}]")
    grid.used = [model.new_bool_var(f"used[{j}]") for j in grid.batches]
    return grid

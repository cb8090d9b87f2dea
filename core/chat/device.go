package chat

import (
	"fmt"

	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels/cuda"
)

// The names of Options.Device.
const (
	DeviceCPU  = "cpu"
	DeviceCUDA = "cuda" // the first NVIDIA GPU; it is an error if that cannot be used
	DeviceAuto = "auto" // the same if it can be used, else the processor; see Model.Device
)

// Device is where the model is computed, in words, and, where DeviceAuto fell back to the
// processor, why.
func (m *Model) Device() (name string, note error) {
	if m.device != nil {
		return m.device.Name, nil
	}
	return DeviceCPU, m.note
}

// OnDevice puts m on the GPU that name asks for, one of the Device names; "" is DeviceCPU. Where
// the processor is to compute, gpu is nil; note says why it is, where DeviceAuto fell back to it.
// The caller closes gpu.Device().
func OnDevice(m *model.Model, name string, setup cuda.Setup) (gpu *model.GPU, note, err error) {
	switch name {
	case "", DeviceCPU:
		return nil, nil, nil
	case DeviceCUDA, DeviceAuto:
	default:
		return nil, nil, fmt.Errorf("chat: device %q, expected %s, %s or %s", name, DeviceCPU, DeviceCUDA, DeviceAuto)
	}
	device, image, err := setup.Open(0)
	if err == nil {
		if gpu, err = model.NewGPU(m, device, image); err == nil {
			return gpu, nil, nil
		}
		device.Close()
	}
	if name == DeviceAuto {
		return nil, err, nil
	}
	return nil, nil, err
}

// openGPU puts the model on a GPU if o wants that; nil is the processor.
func (m *Model) openGPU(o Options) (gpu *model.GPU, err error) {
	gpu, m.note, err = OnDevice(m.model, o.Device, o.CUDA)
	if gpu != nil {
		m.device = gpu.Device()
	}
	return gpu, err
}

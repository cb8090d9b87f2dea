package chat

import (
	"fmt"

	"github.com/architehc/nanochat/core/model"
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

// openGPU puts the model on a GPU if o wants that; nil is the processor.
func (m *Model) openGPU(o Options) (*model.GPU, error) {
	switch o.Device {
	case "", DeviceCPU:
		return nil, nil
	case DeviceCUDA, DeviceAuto:
	default:
		return nil, fmt.Errorf("chat: device %q, expected %s, %s or %s", o.Device, DeviceCPU, DeviceCUDA, DeviceAuto)
	}
	device, image, err := o.CUDA.Open(0)
	var gpu *model.GPU
	if err == nil {
		if gpu, err = model.NewGPU(m.model, device, image); err == nil {
			m.device = device
			return gpu, nil
		}
		device.Close()
	}
	if o.Device == DeviceAuto {
		m.note = err
		return nil, nil
	}
	return nil, err
}
